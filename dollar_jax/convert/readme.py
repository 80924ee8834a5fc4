"""The README.md of an exported folder: how to sample from it. What it quotes of a card or a path is quoted as text."""

import json
from collections.abc import Sequence

from dollar_jax.card import Card
from dollar_jax.convert.export_lora import COMFYUI, place
from dollar_jax.convert.families.family import Family, OriginalKeys

SCHEDULER = "dollar_scheduler"  # the module of our own scheduler


def of_pipeline(family: Family, card: Card, name: str, own: bool) -> str:
    """For the pipeline folder `name`; `own`: whether the scheduler in it is ours."""
    trust = ", trust_remote_code=True" if own else ""
    load = [f"pipe = {family.pipeline}.from_pretrained({json.dumps(name)}, torch_dtype=torch.bfloat16{trust})"]
    imports = ["import torch", f"from diffusers import {family.pipeline}"]
    lines = _page(card, [*_origin(card), *_merged(card, "Merged")], _code(family, card, imports, load))
    return "\n".join([*lines, *_trust(own)])


def of_lora(family: Family, card: Card, name: str, scheduler: str, own: bool) -> str:
    """For the folder `name` with a LoRA of the family's pipeline.

    Args:
      scheduler: the class of the scheduler in it.
      own: whether that is ours.
    """
    place_of_base = card.get("hub", {"repository": "BASE"})
    revision = f", revision={json.dumps(place_of_base['commit'])}" if "commit" in place_of_base else ""
    base = json.dumps(place_of_base["repository"])
    load = [f"pipe = {family.pipeline}.from_pretrained({base}{revision}, torch_dtype=torch.bfloat16)"]
    for merged in card.get("merged", ()):
        load.append(f"# here load and fuse the base's own LoRA, {json.dumps(merged['file'])}")
    load.append(f'pipe.load_lora_weights({json.dumps(name)}, adapter_name="student")')
    for network in family.folders[1:]:
        # With the argument `subfolder` diffusers would read the file above it, if both are on a disk.
        place_of_it = json.dumps(f"{name}/{place(network, family.folders).parent}")
        load.append(f'pipe.load_lora_weights({place_of_it}, adapter_name="student", load_into_{network}=True)')
    load += [
        'pipe.set_adapters("student", 1.0)  # its strength',
        f'pipe.scheduler = {scheduler}.from_pretrained({json.dumps(name)}, subfolder="scheduler")',
    ]
    if own:
        imports = ["import sys", "", "import torch", f"from diffusers import {family.pipeline}", ""]
        imports += [f"sys.path.insert(0, {json.dumps(f'{name}/scheduler')})", f"from {SCHEDULER} import {scheduler}"]
    else:
        imports = ["import torch", f"from diffusers import {', '.join(sorted((family.pipeline, scheduler)))}"]
    digest = card["transformer"]["lora"]["sha256"]
    files = [f"`{place(network, family.folders)}`" for network in family.folders]
    origin = [f"A LoRA for diffusers, {' and '.join(files)}, which needs peft and its base:", ""]
    if "hub" in card:
        origin += _origin(card)
    else:
        origin += ["BASE, the diffusers folder that the student was distilled from.", ""]
    origin += [
        f"The base's transformer, as dollar_jax stores it, has the SHA-256 `{digest}`.",
        "",
        *_merged(card, "The base is merged"),
    ]
    if isinstance(family.component("transformer").keys, OriginalKeys):
        ours = [f"`{COMFYUI}/{network}.safetensors`" for network in family.folders]
        origin += [f"ComfyUI and other programs with the original names of the layers read {' and '.join(ours)}.", ""]
    return "\n".join([*_page(card, origin, _code(family, card, imports, load)), *_trust(own)])


def _page(card: Card, origin: Sequence[str], code: Sequence[str]) -> list[str]:
    schedule, times = card["schedule"], sorted(card["times"], reverse=True)
    steps = f"{len(times)} steps, guidance scale {card['guidance'] + 1:g}"
    if schedule["kind"] == "flow":
        # A student's own levels; a teacher's are too many to list.
        levels = [f"{time / schedule.get('steps', 1000):.4g}" for time in times if card["role"] == "student"]
        steps += f", shift {schedule.get('shift', 1.0):g}"
        steps += f", sigma {', '.join(levels)}" if levels else ""
    return [f"# A {card['role']} of dollar_jax", "", f"{steps}.", "", *origin, "```python", *code, "```", ""]


def _origin(card: Card) -> list[str]:
    if not (hub := card.get("hub")):
        return []
    page = f"https://huggingface.co/{hub['repository']}/tree/{hub['commit']}"
    return [f"From [{hub['repository']}]({page}), commit `{hub['commit']}`.", ""]


def _merged(card: Card, words: str) -> list[str]:
    digests = [f"`{merged['sha256']}`" for merged in card.get("merged", ())]
    return [f"{words} with the LoRA of SHA-256 {' and '.join(digests)}.", ""] if digests else []


def _code(family: Family, card: Card, imports: Sequence[str], load: Sequence[str]) -> list[str]:
    """The lines of Python that sample, after those that load the pipeline."""
    call = ", ".join(["prompt", *(f"{name}={value!r}" for name, value in family.call(card).items())])
    if not (chunk := card["video"]["independent_chunk"]):
        return [*imports, "", *load, f"video = pipe({call}).frames[0]"]
    latents = card["latent_shape"][0] * chunk // card["video"]["frames"]
    return [
        *imports,
        "",
        "torch.set_grad_enabled(False)",
        "",
        *load,
        f'latents = pipe({call}, output_type="latent").frames',
        f"latents = {family.unscaled}",
        f"parts = [pipe.vae.decode(part).sample[:, :, 1:] for part in latents.split({latents}, dim=2)]",
        "video = pipe.video_processor.postprocess_video(torch.cat(parts, dim=2))[0]",
    ]


def _trust(own: bool) -> list[str]:
    return [f"`scheduler/{SCHEDULER}.py` is run by this: read it first, it is short.", ""] if own else []
