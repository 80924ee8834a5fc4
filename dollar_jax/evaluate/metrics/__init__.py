"""What reports and logs measure of videos: one file a metric, named in `config.report.metrics` with its options.

A metric is a class, made with its options before a run begins:

    fit(data: Clips) -> ((clips: Clips) -> float | {key: float})    data are real clips, clips a model's

or a function (clips, **options) or (clips, data, **options), whose real clips stay in memory.

columns      a `Column` for each number that it returns
least_clips  real clips that it compares with at least; 1 where the attribute is absent

`module:name` names one from outside the package.
"""
