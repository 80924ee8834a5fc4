"""The models of other libraries that can be converted: whose class they are and which tables fit."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dollar_jax.convert import clip, cogvideox, cogvideox_vae, t5
from dollar_jax.errors import UserError
from dollar_jax.reading import read_json, require_schema, within

# Any JSON, with numbers that a network can have and words that fit into a message.
_WORD = {"maxLength": 1000, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*\Z"}
SIZES = {"minimum": -1e6, "maximum": 1e6, "maxItems": 1000, **_WORD, "propertyNames": _WORD}
SIZES |= {"items": {"$ref": "#"}, "additionalProperties": {"$ref": "#"}}
# Of what their config.json says beyond sizes, these words stay; others could name code or places.
WORDS = ("_diffusers_version", "transformers_version", "torch_dtype", "dtype", "dense_act_fn")


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


def of_folder(root: Path, folder: str = "") -> tuple[Architecture, dict[str, Any]]:
    """Which one a model folder holds, and its config.json.

    Args:
      root, folder: as of `tensors.open_folder`.
    Raises:
      UserError: an unknown one, or none.
    """
    path = within(root, os.path.join(folder, "config.json"))
    theirs = read_json(path)
    require_schema(theirs, SIZES, path, "is it the description of a network?")
    listed = theirs.get("architectures")
    name = theirs.get("_class_name") or (listed[0] if isinstance(listed, list) and listed else None)
    for architecture in ARCHITECTURES:
        if architecture.class_name == name:
            return architecture, theirs
    known = ", ".join(architecture.class_name for architecture in ARCHITECTURES)
    raise UserError(f"{path} describes a {word(name)}, which cannot be converted; known are {known}")


def describe(architecture: Architecture, part: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that the other library reads, from a component of our card.

    Raises:
      UserError: the library has no such network.
    """
    with describing(f"the {architecture.component} of the card"):
        ours = architecture.keys.their_config(part["config"])
    scale = {"scaling_factor": part["scaling_factor"]} if "scaling_factor" in part else {}
    names = {"_class_name": architecture.class_name}
    if architecture.library == "transformers":
        names = {"architectures": [architecture.class_name]}
    return plain(part.get("source", {})) | ours | scale | names


@contextmanager
def describing(place: str | os.PathLike) -> Iterator[None]:
    """What odd sizes, types and tensors raise becomes one line: networks and tables are made for those that fit."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{place} does not describe a network that can be made: {reason}") from error


def plain(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What of their config.json is kept in a card: numbers, and words that are known to name no code and no place."""

    def known(name: str, value: Any) -> bool:
        if isinstance(value, str):
            return name in WORDS and re.fullmatch(r"[\w.+-]{1,50}", value) is not None
        return value is None or isinstance(value, bool | int | float)

    values = {name: value if isinstance(value, list) else [value] for name, value in theirs.items()}
    return {name: theirs[name] for name, items in values.items() if all(known(name, item) for item in items)}


def word(name: Any) -> str:
    """A stranger's word for a class, for a message."""
    return name if isinstance(name, str) and name.isidentifier() else f"{name!r:.100}"
