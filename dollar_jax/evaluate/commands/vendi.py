"""python -m dollar_jax.evaluate vendi --videos=DIR: how many different videos there are of a prompt (Eq. 17).

DIR is what `python -m dollar_jax.sample --num_videos=5` wrote. Among the videos of a prompt the Vendi score of each key
frame is taken, 1 where all are the same, 5 where five have nothing in common, and averaged over the key frames; mean
and standard deviation over the prompts are printed. Compare models by the same prompts, videos a prompt, and features:

  --features=pixels                      of the frame itself; noise counts as diversity
  --features=thumbnails                  of the frame at 32 x 32: the vendi-score package's pixels
  --features=inception --weights=FILE    Inception v3 of torchvision, .pth or .safetensors
  --features=my_fork.features:embed      uint8 [n, h, w, 3] -> [n, d]; with --weights=FILE as a second argument
"""

import json
from functools import partial
from pathlib import Path

from absl import flags

from dollar_jax.cli import required
from dollar_jax.files import write_atomically
from dollar_jax.importing import resolve

_VIDEOS = flags.DEFINE_string("videos", None, "Folder of {prompt:05d}-{video}.mp4.")
_FEATURES = flags.DEFINE_string("features", "pixels", "What frames are compared by.")
_WEIGHTS = flags.DEFINE_string("weights", None, "File for the features.")
_SPACING = flags.DEFINE_integer("spacing", 20, "Frames from one key frame to the next.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "A JSON file for the numbers, those of each prompt too.")


def main() -> None:
    required(_VIDEOS)
    embed = resolve(_FEATURES.value, "dollar_jax.evaluate.features")
    if _WEIGHTS.value:
        embed = partial(embed, weights=_WEIGHTS.value)

    import numpy as np

    from dollar_jax.evaluate.vendi import diversity_of_folder

    prompts, videos, key_frames = diversity_of_folder(Path(_VIDEOS.value), _SPACING.value, embed)
    mean, std = (float(of(list(prompts.values()))) for of in (np.mean, np.std))
    print(
        f"Vendi ({_FEATURES.value}): {mean:.3f} ± {std:.3f} over {len(prompts)} prompt{'s' * (len(prompts) > 1)},"
        f" {videos} videos each, {key_frames} key frame{'s' * (key_frames > 1)}"
    )
    if _OUT.value:
        numbers = {"mean": mean, "std": std, "videos_per_prompt": videos, "key_frames": key_frames}
        settings = {"features": _FEATURES.value, "weights": _WEIGHTS.value, "spacing": _SPACING.value}
        write_atomically(_OUT.value, json.dumps(numbers | settings | {"prompts": prompts}, indent=1) + "\n")
