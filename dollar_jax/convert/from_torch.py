"""PyTorch folders and files to our checkpoints. They may be strangers': nothing in them runs or leads out of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dollar_jax.checkpoint import Card, save_params, write_card
from dollar_jax.convert import aesthetic, clip, schedulers
from dollar_jax.convert.architectures import SIZES, describing, of_folder, plain, word
from dollar_jax.convert.tables import Rule, convert
from dollar_jax.convert.tensors import Tensors, open_file, open_folder
from dollar_jax.data.text import copy_tokenizer
from dollar_jax.errors import UserError
from dollar_jax.files import new_folder, require_space
from dollar_jax.models import build
from dollar_jax.pipeline import at_size
from dollar_jax.reading import inside, read_json, require_schema, within

PIPELINE = "CogVideoXPipeline"
GUIDANCE = 5.0  # the paper's w; the stock pipeline's guidance_scale of 6
LORA = ("*lora*.safetensors", "*lora*.bin", "adapter_config.json")
_BETA = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_SCHEDULER = SIZES | {
    "properties": {
        "num_train_timesteps": {"type": "integer", "minimum": 1, "maximum": 100_000},
        "beta_start": _BETA,
        "beta_end": _BETA,
        "rescale_betas_zero_snr": {"type": "boolean"},
        "snr_shift_scale": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
    }
}
_SCALE = {
    "required": ["scaling_factor"],
    "properties": {"scaling_factor": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6}},
}


def from_torch(source: Path, target: Path) -> Card:
    """Converts what is at `source` and returns the card of the new checkpoint `target`.

    Tensors keep their dtype; one component is in memory at a time.

    Args:
      source: a diffusers pipeline folder, a model folder of diffusers or transformers, or a file of open_clip or of
        LAION's aesthetic predictors.
    Raises:
      UserError: what is there cannot be read or does not fit; then nothing is written.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist")
    with new_folder(target) as folder:
        if source.is_file():
            card = _file(source, folder)
        elif (source / "model_index.json").exists():
            card = _pipeline(source, folder)
        else:
            part, component = _component(source, "", folder)
            card = {"role": component, component: part}
        write_card(folder, card)
    return card


def _pipeline(source: Path, folder: Path) -> Card:
    """A teacher, with all that its folder says."""
    kind = read_json(within(source, "model_index.json")).get("_class_name")
    if kind != PIPELINE:
        raise UserError(
            f"{source} holds a {word(kind)}, which is neither sampled nor distilled here (a {PIPELINE} is); to convert"
            " its networks alone name their folders"
        )
    _refuse_lora(source)
    path = within(source, "scheduler/scheduler_config.json")
    scheduler = read_json(path)
    require_schema(scheduler, _SCHEDULER, path, "no such scheduler can be converted")
    card: Card = {"role": "teacher"} | schedulers.to_card(scheduler)
    card["guidance"] = GUIDANCE
    for name in ("transformer", "vae", "text_encoder"):
        part, component = _component(source, name, folder)
        if component != name:
            raise UserError(f"{source / name} holds a {component}")
        card[name] = part
    if not (source / "tokenizer").is_dir():
        raise UserError(f"{source}/tokenizer is missing")
    copy_tokenizer(inside(source, "tokenizer"), folder / "tokenizer")
    card["tokenizer"] = {"path": "tokenizer", "length": card["transformer"]["config"]["max_text_seq_length"]}
    with describing(source / "transformer" / "config.json"):
        return _at_own_size(card)


def _at_own_size(card: Card) -> Card:
    """The card with the video size that the transformer's config stands for."""
    network, vae = card["transformer"]["config"], card["vae"]["config"]
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    size = {"height": network["sample_height"] * scale, "width": network["sample_width"] * scale, "fps": 8}
    if stride := network["patch_size_t"]:
        # CogVideoX 1.5 calls the range of its positions a size; it was trained at this one.
        size = {"height": 768, "width": 1360, "fps": 16} if network["sample_height"] == 300 else size
    card = at_size(card, {"frames": network["sample_frames"], **size, "independent_chunk": 0})
    if stride and (rest := card["latent_shape"][0] % stride):
        card["lead"] = stride - rest
        card["latent_shape"][0] += card["lead"]
    return card


def _component(source: Path, name: str, folder: Path) -> tuple[Card, str]:
    """Converts the model folder `source/name` into `folder/component`: its part of a card, and the component's name."""
    place = source / name
    _refuse_lora(place)
    architecture, theirs = of_folder(source, name)
    component = architecture.component
    if component == "vae":
        require_schema(theirs, _SCALE, place / "config.json", "is it an AutoencoderKLCogVideoX?")
    with describing(place / "config.json"):
        config = architecture.keys.config(theirs)
        table = architecture.keys.table(config)
    tensors = open_folder(source, name)
    if component == "clip":
        tensors = tensors.without(clip.IGNORED)
    part = _save(place, folder, component, architecture.network, config, table, tensors)
    scale = {"scaling_factor": theirs["scaling_factor"]} if component == "vae" else {}
    return part | scale | {"source": plain(theirs)}, component


def _file(source: Path, folder: Path) -> Card:
    """A file without a config: its tensors say what it is."""
    tensors = open_file(source)
    if "visual.conv1.weight" in tensors:
        with describing(source):
            config = clip.open_clip_config(tensors.shapes)
            table, split = clip.open_clip_table(config), clip.split_fused(tensors)
        return {"role": "clip", "clip": _save(source, folder, "clip", "clip", config, table, split)}
    if tensors.keys() <= {"weight", "bias"} or "layers.0.weight" in tensors:
        with describing(source):
            config = aesthetic.config(tensors.shapes)
            table = aesthetic.table(config)
        part = _save(source, folder, "aesthetic", "aesthetic", config, table, tensors)
        return {"role": "aesthetic", "aesthetic": part}
    raise UserError(f"{source} holds neither an open_clip model nor an aesthetic predictor; folders have a config.json")


def _save(
    source: Path,
    folder: Path,
    component: str,
    network: str,
    config: Mapping[str, Any],
    table: list[Rule],
    tensors: Tensors,
) -> Card:
    """Converts and writes one network, and returns its part of a card."""
    require_space(folder, tensors.nbytes)
    print(f"{component}: {len(tensors)} tensors, {tensors.nbytes / 1e6:,.1f} MB", flush=True)
    with describing(source):
        target = jax.eval_shape(build(network, config).init, jax.random.key(0))
        params = convert(table, tensors, target)
    save_params(folder / component, params)
    return {"architecture": network, "config": dict(config), "path": component, "item": ""}


def _refuse_lora(folder: Path) -> None:
    for pattern in LORA:
        for path in folder.glob(pattern):
            raise UserError(
                f"{path} is a LoRA, which would be left out: merge it in diffusers (pipe.load_lora_weights, fuse_lora,"
                " unload_lora_weights, save_pretrained) and convert the result"
            )
