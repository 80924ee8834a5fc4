"""Students of 4 steps whose transformer is a random adapter, as the stage `distill` writes them, without training; and
the stock pipeline with an exported one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dollar_jax import checkpoint, pipeline
from dollar_jax.config import lora as lora_config
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.diffusion import make_schedule
from dollar_jax.models import lora

SIZE = {"frames": 9, "height": 16, "width": 32, "fps": 8, "independent_chunk": 0}
RANK = 3
TARGETS = (*lora_config().targets, "*time_project")


def teacher_of(source: Path, folder: Path) -> Path:
    """Our teacher `folder/teacher` of a stock pipeline, for small videos."""
    from_torch(source, folder / "teacher")
    checkpoint.write_card(folder / "teacher", pipeline.at_size(checkpoint.read_card(folder / "teacher"), SIZE))
    return folder / "teacher"


def make_student(
    teacher: Path,
    folder: Path,
    alpha: float,
    targets: Sequence[str] = TARGETS,
    schedule: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a student of the teacher and returns its adapter; without a schedule it has the teacher's."""
    card = checkpoint.read_card(teacher)
    base, flat = flatten_dict(checkpoint.open_component(teacher, card["transformer"]), sep="/"), {}
    rng = np.random.default_rng(2)
    for layer in lora.adaptable(checkpoint.network_of(card["transformer"]), targets):
        *stack, rows, columns = base[f"{layer}/kernel"].shape
        flat[f"{layer}/lora_a"] = 0.3 * rng.normal(size=(*stack, rows, RANK)).astype(np.float32)
        flat[f"{layer}/lora_b"] = 0.2 * rng.normal(size=(*stack, RANK, columns)).astype(np.float32)
    adapter = unflatten_dict(flat, sep="/")
    brought = checkpoint.bring(card, teacher, folder, (*checkpoint.SHARED, "transformer"))
    checkpoint.save_params(folder / "adapter", adapter)
    fields = {"base": "transformer", "sha256": checkpoint.digest(teacher, card["transformer"]), "rank": RANK}
    schedule = schedule or card["schedule"]
    card |= brought | {
        "role": "student",
        "transformer": card["transformer"] | {"path": "adapter", "item": "", "lora": fields | {"alpha": alpha}},
        "schedule": schedule,
        "times": list(make_schedule(**schedule).spaced(4)),
        "sampler": "ddim",
        "guidance": 0.0,
    }
    card.pop("low_guidance", None)
    checkpoint.write_card(folder, card)
    return adapter


def pipe_of_readme(folder: Path, monkeypatch) -> Any:
    """What the README's code loads in the folder above, but in float32."""
    monkeypatch.chdir(folder.parent)
    code = (folder / "README.md").read_text().split("```")[1].removeprefix("python\n")
    lines = code.replace("torch.bfloat16", "torch.float32").splitlines()
    assert lines[-1].startswith("video = pipe(prompt, num_inference_steps=4, guidance_scale=1.0")
    names = {}
    exec("\n".join(lines[:-1]), names)
    pipe = names["pipe"]
    pipe.set_progress_bar_config(disable=True)
    return pipe
