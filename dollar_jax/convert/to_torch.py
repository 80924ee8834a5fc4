"""Our checkpoints to folders that stock diffusers loads."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dollar_jax.card import COMPONENTS, SAMPLED, Card, require
from dollar_jax.checkpoint import load_component, read_card, root
from dollar_jax.convert import schedulers
from dollar_jax.convert.architectures import by_network, describe
from dollar_jax.convert.tables import restore
from dollar_jax.convert.tensors import write_folder
from dollar_jax.data.text import copy_tokenizer
from dollar_jax.errors import UserError
from dollar_jax.files import new_folder, require_space
from dollar_jax.reading import inside, read_json

SCHEDULER_FILE = Path(__file__).with_name("dollar_scheduler.py")


def to_torch(source: Path, target: Path, item: str = "") -> None:
    """Writes the model in `source` as a diffusers pipeline folder, or a network without one as a model folder.

    Args:
      source: a model's folder, or one numbered checkpoint in it.
      item: which weights of a training stage: student, ema, params or fake_score; by default what the card names.
    Raises:
      UserError: there is no such model, or diffusers has no such network; then nothing is written.
    """
    card = read_card(source)
    own = card["role"] if card["role"] in card else "transformer"
    if item:
        card[own] = card[own] | {"item": item}
    require(card, (own,), source)
    alone = own != "transformer" or "vae" not in card
    if not alone:
        require(card, SAMPLED, source)
    with new_folder(target) as folder:
        if alone:
            _component(source, card[own], folder)
            return
        index = {"_class_name": "CogVideoXPipeline"}
        for name in COMPONENTS:
            (folder / name).mkdir()
            index[name] = _component(source, card[name], folder / name)
        copy_tokenizer(inside(root(source), card["tokenizer"]["path"]), folder / "tokenizer")
        index["tokenizer"] = ["transformers", _tokenizer_class(folder / "tokenizer")]
        index["scheduler"] = _scheduler(card, folder / "scheduler")
        _write_json(folder / "model_index.json", index)
        (folder / "README.md").write_text(_readme(card, target, index["scheduler"][1] != schedulers.STOCK))


def _component(source: Path, part: Card, folder: Path) -> list[str]:
    """Writes one network and returns its entry of model_index.json."""
    architecture = by_network(part["architecture"])
    description = describe(architecture, part)
    _, params = load_component(source, part)
    require_space(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    print(f"{architecture.component}: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    params = jax.tree.map(np.asarray, params)
    write_folder(folder, architecture.stem, restore(architecture.keys.table(part["config"]), params))
    _write_json(folder / "config.json", description)
    return [architecture.library, architecture.class_name]


def _scheduler(card: Card, folder: Path) -> list[str]:
    """Writes the scheduler and returns its entry of model_index.json: a module in the folder where it is our own."""
    name, config = schedulers.from_card(card)
    _write_json(folder / "scheduler_config.json", {"_class_name": name} | config)
    if name == schedulers.STOCK:
        return ["diffusers", name]
    shutil.copy(SCHEDULER_FILE, folder)
    return [SCHEDULER_FILE.stem, name]


def _tokenizer_class(folder: Path) -> str:
    name = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    # The pipeline's index names the class that transformers imports.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w{0,80}", name):
        raise UserError(f"the tokenizer is a {name!r}, which is no class of transformers")
    return name


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _readme(card: Card, target: Path, own_scheduler: bool) -> str:
    """How to sample from the folder."""
    video, vae = card["video"], card["vae"]["config"]
    ratio = vae["temporal_compression_ratio"]
    frames = (card["latent_shape"][0] - card.get("lead", 0) - 1) * ratio + 1
    length = card["tokenizer"]["length"]
    trust = ", trust_remote_code=True" if own_scheduler else ""
    size = f"num_frames={frames}, height={video['height']}, width={video['width']}, max_sequence_length={length}"
    call = f"prompt, num_inference_steps={len(card['times'])}, guidance_scale={card['guidance'] + 1}, {size}"
    lines = [
        f"# A {card['role']} of dollar_jax",
        "",
        "```python",
        "from diffusers import CogVideoXPipeline",
        "",
        f"pipe = CogVideoXPipeline.from_pretrained({json.dumps(target.name)}{trust})",
    ]
    if chunk := video["independent_chunk"]:
        latents = card["latent_shape"][0] * chunk // video["frames"]
        lines += [
            f'latents = pipe({call}, output_type="latent").frames.permute(0, 2, 1, 3, 4)',
            "latents = latents / pipe.vae.config.scaling_factor",
            f"parts = [pipe.vae.decode(part).sample[:, :, 1:] for part in latents.split({latents}, dim=2)]",
            "video = pipe.video_processor.postprocess_video(torch.cat(parts, dim=2))[0]",
        ]
        lines[3:4] = ["import torch", lines[3], "", "torch.set_grad_enabled(False)"]
    else:
        lines.append(f"video = pipe({call}).frames[0]")
    lines += ["```", ""]
    if own_scheduler:
        lines += [f"`scheduler/{SCHEDULER_FILE.name}` is run by this: read it first, it is short.", ""]
    return "\n".join(lines)
