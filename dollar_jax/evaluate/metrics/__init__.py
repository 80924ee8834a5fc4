"""Metrics of videos for reports and logs, one file each. `config.report.metrics` names them with their options.

A metric is a class, constructed with its options before a run, with a method

    fit(data: Clips) -> ((clips: Clips) -> float | {key: float})    data: real clips, clips: clips of a model

or a function (clips, **options) or (clips, data, **options); the latter keeps the real clips in memory. None in place
of a float: the clips do not determine the value; reports show a dash, and means over runs leave it out. Attributes:

columns      a `Column` for each value that it returns
least_clips  smallest number of real clips that it needs, by default 1; 0: `fit` may get None

`module:name` names a metric from outside the package.
"""
