"""The rows of a run's report: which clips and samplings they are made of."""

from dollar_jax.stages.report import _balanced


def clips(**counts):
    return [{"caption": caption, "number": i} for caption, count in counts.items() for i in range(count)]


def test_data_have_as_many_clips_of_each_caption_as_models():
    assert _balanced(clips(a=3, b=5, c=2), 3) == clips(a=3, b=3)
    assert _balanced(clips(a=1, b=2), 1) == clips(a=1, b=1)


def test_data_with_a_caption_for_each_video_keep_all_clips():
    """One caption with two videos must not stand for all data."""
    one_each = clips(a=2, b=1, c=1)
    assert _balanced(one_each, 2) == one_each
