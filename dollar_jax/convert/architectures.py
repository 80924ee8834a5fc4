"""The models of other libraries that can be converted: whose class they are and which tables fit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dollar_jax.convert import clip, cogvideox, cogvideox_vae, t5
from dollar_jax.importing import UserError


@dataclass(frozen=True)
class Architecture:
    """One of them.

    Attributes:
      component: what our cards call it.
      network: its module in `dollar_jax.models`.
      keys: its module here: `table(config)`, `config(theirs)` and `their_config(config)`.
      library, class_name: who loads it there.
      stem: its files are named so there.
    """

    component: str
    network: str
    keys: ModuleType
    library: str
    class_name: str
    stem: str


ARCHITECTURES = (
    Architecture(
        "transformer", "cogvideox_dit", cogvideox, "diffusers", "CogVideoXTransformer3DModel", "diffusion_pytorch_model"
    ),
    Architecture(
        "vae", "cogvideox_vae", cogvideox_vae, "diffusers", "AutoencoderKLCogVideoX", "diffusion_pytorch_model"
    ),
    Architecture("text_encoder", "t5", t5, "transformers", "T5EncoderModel", "model"),
    Architecture("clip", "clip", clip, "transformers", "CLIPModel", "model"),
)


def by_network(network: str) -> Architecture:
    """The one whose network is `network` here.

    Raises:
      UserError: no other library has it.
    """
    found = [architecture for architecture in ARCHITECTURES if architecture.network == network]
    if not found:
        raise UserError(f"{network}: no other library has this network")
    return found[0]


def of_folder(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """Which one a model folder holds, and its config.json.

    Raises:
      UserError: an unknown one, or none.
    """
    theirs = read_json(folder / "config.json")
    name = theirs.get("_class_name") or next(iter(theirs.get("architectures") or ()), None)
    for architecture in ARCHITECTURES:
        if architecture.class_name == name:
            return architecture, theirs
    known = ", ".join(architecture.class_name for architecture in ARCHITECTURES)
    raise UserError(f"{folder}/config.json describes a {name}, which cannot be converted; known are {known}")


def describe(architecture: Architecture, part: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that the other library reads, from a component of our card."""
    ours = architecture.keys.their_config(part["config"])
    scale = {"scaling_factor": part["scaling_factor"]} if "scaling_factor" in part else {}
    names = {"_class_name": architecture.class_name}
    if architecture.library == "transformers":
        names = {"architectures": [architecture.class_name]}
    return names | dict(part.get("source", {})) | ours | scale


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
      UserError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
