"""Networks that other libraries have: found by a model folder or by our name, and described as those libraries do."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dollar_jax.convert import clip, families
from dollar_jax.convert.families.family import Architecture
from dollar_jax.errors import UserError, first_line
from dollar_jax.reading import read_json, require_schema, within

# Any JSON, with numbers that a network can have and words that fit into a message.
_WORD = {"maxLength": 1000, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*\Z"}
SIZES = {"minimum": -1e6, "maximum": 1e6, "maxItems": 1000, **_WORD, "propertyNames": _WORD}
SIZES |= {"items": {"$ref": "#"}, "additionalProperties": {"$ref": "#"}}
# The words of a config.json that are kept; others could name code or places.
WORDS = ("_diffusers_version", "transformers_version", "torch_dtype", "dtype", "dense_act_fn")
CLIP = Architecture("clip", "clip", clip, "transformers", "CLIPModel")


def known() -> tuple[Architecture, ...]:
    """The networks of all families, and CLIP."""
    components = (architecture for family in families.FAMILIES for architecture in family.components)
    return tuple(dict.fromkeys([*components, CLIP]))


def by_network(network: str) -> Architecture:
    """The architecture with our network `network`.

    Raises:
      UserError: no other library has it.
    """
    for architecture in known():
        if architecture.network == network:
            return architecture
    raise UserError(f"{network}: no other library has this network")


def of_folder(root: Path, folder: str = "") -> tuple[Architecture, dict[str, Any]]:
    """The architecture in a model folder, and its config.json.

    Args:
      root, folder: as in `tensors.open_folder`.
    Raises:
      UserError: there is no description, or it names a class that is not known here.
    """
    path = within(root, os.path.join(folder, "config.json"))
    theirs = read_json(path)
    require_schema(theirs, SIZES, path, "is it the description of a network?")
    listed = theirs.get("architectures")
    name = theirs.get("_class_name") or (listed[0] if isinstance(listed, list) and listed else None)
    for architecture in known():
        if architecture.class_name == name:
            return architecture, theirs
    names = ", ".join(architecture.class_name for architecture in known())
    raise UserError(f"{path} describes a {word(name)}, which cannot be converted; known are {names}")


def describe(architecture: Architecture, part: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json for the other library, from a component of our card.

    Raises:
      UserError: the library has no such network.
    """
    with describing(f"the {architecture.component} of the card"):
        ours = architecture.keys.their_config(part["config"])
        if architecture.component == "vae":
            ours |= architecture.keys.their_scale(part)
    names = {"_class_name": architecture.class_name}
    if architecture.library == "transformers":
        names = {"architectures": [architecture.class_name]}
    return plain(part.get("source", {})) | ours | names


@contextmanager
def describing(place: str | os.PathLike) -> Iterator[None]:
    """Turns every exception into one line about `place`: networks and tables raise anything for sizes of a stranger."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{place} does not describe a network that can be made: {first_line(error)}") from error


def plain(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json that a card keeps: numbers, and words that are known to name no code and no place."""

    def kept(name: str, value: Any) -> bool:
        if isinstance(value, str):
            return name in WORDS and re.fullmatch(r"[\w.+-]{1,50}", value) is not None
        return value is None or isinstance(value, bool | int | float)

    values = {name: value if isinstance(value, list) else [value] for name, value in theirs.items()}
    return {name: theirs[name] for name, items in values.items() if all(kept(name, item) for item in items)}


def word(name: Any) -> str:
    """A stranger's name of a class, fit for a message."""
    return name if isinstance(name, str) and name.isidentifier() else f"{name!r:.100}"
