import numpy as np
import pytest

from configs import pairs
from dollar_jax.data.pairs import PairsWorld, some_captions
from dollar_jax.evaluate.measure import Clips, Metrics


@pytest.fixture(scope="module")
def clips():
    world = list(PairsWorld(24, 3, captions=some_captions(6)))
    video = np.stack([clip["video"] for clip in world])
    latents = video[:, ::4, ::8, ::8] / np.float32(255)
    return Clips(video, latents, [clip["caption"] for clip in world])


def test_the_metrics_of_the_config_know_data_and_a_collapse(clips):
    metrics = pairs.get_config().report.metrics.to_dict()
    measure = Metrics({name: metrics[name] for name in metrics if "pairs" in name}).fit(clips)
    result = measure(clips)
    assert [result[name] for name in ("alignment", "colour", "shape", "relation", "motion")] == [1] * 5
    assert result["clean_db"] > 50
    assert result["spread"] == pytest.approx(1)
    first = {caption: clips.captions.index(caption) for caption in clips.captions}
    rows = [first[caption] for caption in clips.captions]
    collapsed = measure(Clips(clips.pixels[rows], clips.latents[rows], clips.captions))
    assert collapsed["alignment"] == 1
    assert collapsed["spread"] == pytest.approx(0, abs=1e-4)
