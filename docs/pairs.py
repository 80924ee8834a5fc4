"""python -m docs.pairs DIR: draws docs/pairs.png from the report of `pairs_frontier` below DIR, seed 0."""

import json
import sys
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from dollar_jax import pictures
from dollar_jax.files import write_atomically

MODELS = {
    "teacher, guidance 0": "teacher, no guidance",
    "teacher, guidance 1": "teacher, guidance 1",
    "teacher": "teacher, guidance 3",
    "teacher, guidance 7": "teacher, guidance 7",
    "vsd_cd": "VSD + CD, 4 steps",
    "vsd_trajectory": "TDM, 4 steps",
    "cd": "CD, 4 steps",
    "vsd_cd_unguided": "VSD + CD, no guidance",
    "vsd_cd_1_step": "trained for 1 step",
    "vsd_cd, 1 step": "VSD + CD, 1 step",
}
PROMPTS = 1, 3  # of the report's


def clip(report: Path, model: str, prompt: int, frames: int) -> np.ndarray:
    """The video [f h w 3] of a model on the report's page, where its frames are side by side in one picture."""
    strip = np.asarray(Image.open(report / "clips" / model / f"{prompt}.png").convert("RGB"))
    return rearrange(strip, "h (f w) c -> f h w c", f=frames)


def main(folder: Path) -> None:
    report = folder / "pairs_frontier" / "0" / "report"
    meta = json.loads((report / "report.json").read_text())["meta"]
    frames, *_ = meta["look"]
    clips = {
        label: np.stack([clip(report, model, prompt, frames) for prompt in PROMPTS]) for model, label in MODELS.items()
    }
    picture = pictures.montage(clips, [meta["captions"][prompt] for prompt in PROMPTS])
    write_atomically(Path(__file__).with_name("pairs.png"), picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
