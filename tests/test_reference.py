"""The reference: every field has a meaning, and the pages are those that the code gives now."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from docs.reference.generate import CHANGED, FULL, PAGES, ROOT, leaves, range_of, told
from dollar_jax import card, fields


def nodes(node, path=""):
    """(path, node) of every field in a JSON schema; what an objective has beside its options is in a guide."""
    for kind in (node, *node.get("oneOf", ()), node.get("items", {})):
        for name, field in kind.get("properties", {}).items():
            yield f"{path}.{name}", field
            yield from nodes(field, f"{path}.{name}")


@pytest.mark.parametrize("schema", [fields.SCHEMA, card.SCHEMA], ids=["config", "card"])
def test_every_field_has_a_meaning_of_one_or_two_sentences(schema):
    found = dict(nodes(schema))
    assert len(found) > 50
    for path, field in found.items():
        assert field.get("description", "").endswith("."), path
        assert range_of(field), path


@pytest.mark.parametrize("name", [*FULL, *CHANGED])
def test_every_field_of_a_config_is_described(name):
    for path, _ in leaves(importlib.import_module(f"configs.{name}").get_config()):
        node = fields.SCHEMA
        for part in path.split("."):
            if "properties" not in node:
                break  # sizes of a network, options: the function that takes them describes them
            assert part in node["properties"], path
            node = node["properties"][part]


def test_every_config_is_on_the_page():
    files = {path.stem for path in (ROOT / "configs").glob("[a-z]*.py")}
    assert files == {*FULL, *CHANGED, "laboratory"}


def test_meanings_are_read_from_a_docstring():
    text = """What it does.

    Args:
      one: first,
        with a second line.
      two, three: both.

    Raises:
      UserError: never.
    """
    assert told(text) == {"one": "first, with a second line.", "two": "both.", "three": "both."}
    assert told("No arguments.") == {}


def test_fields_of_a_tree():
    tree = ConfigDict({"a": {"b": 1, "c": {}}, "d": (1, 2)})
    assert dict(leaves(tree)) == {"a.b": 1, "a.c": {}, "d": (1, 2)}


def test_the_pages_are_current(tmp_path):
    module = "docs.reference.generate"
    subprocess.run([sys.executable, "-m", module, tmp_path], cwd=ROOT, check=True)
    for name in PAGES:
        page = (ROOT / f"docs/reference/{name}.md").read_text()
        assert Path(tmp_path / f"{name}.md").read_text() == page, f"run python -m {module}"
