"""python -m dollar_jax.evaluate vendi --videos=DIR: the effective number of different videos of a prompt (Eq. 17).

DIR was written by `python -m dollar_jax.sample --num_videos=5`. The Vendi score of a prompt's videos is computed at
each key frame (1: all equal, 5: five videos with nothing in common) and averaged over the key frames. The command
prints its mean and standard deviation over the prompts. To compare models, use the same prompts, number of videos per
prompt, and features:

  --features=pixels                      the frame itself; noise counts as diversity
  --features=thumbnails                  the frame at 32 x 32, the pixels of the package vendi-score
  --features=inception --weights=FILE    Inception v3 of torchvision, .pth or .safetensors
  --features=clip --weights=FOLDER       CLIP, converted by python -m dollar_jax.convert from_torch
  --features=my_fork.features:embed      uint8 [n, h, w, 3] -> [n, d]; with --weights=FILE as a second argument
"""

import json
from pathlib import Path

from absl import flags

from dollar_jax.cli import required
from dollar_jax.files import write_atomically

_VIDEOS = flags.DEFINE_string("videos", None, "Folder of {prompt:05d}-{video}.mp4.")
_FEATURES = flags.DEFINE_string("features", "pixels", "Features of a frame.")
_WEIGHTS = flags.DEFINE_string("weights", None, "File of weights for the features.")
_SPACING = flags.DEFINE_integer("spacing", 20, "Frames from one key frame to the next.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "JSON file for the numbers, including each prompt's.")


def main() -> None:
    required(_VIDEOS)

    import numpy as np

    from dollar_jax.evaluate.embedding import embedder
    from dollar_jax.evaluate.vendi import diversity_of_folder

    embed = embedder(_FEATURES.value, _WEIGHTS.value or "")
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
