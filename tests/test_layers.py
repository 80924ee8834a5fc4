"""Imports point one way: from what is wired to what it is wired of."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imports(path):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(root):
    """Each module or package directly under `dollar_jax` and those that it imports. Programs of packages stand above
    all of them: nothing imports them.
    """
    found = defaultdict(set)
    for path in (root / "dollar_jax").rglob("*.py"):
        unit, *rest = path.relative_to(root / "dollar_jax").with_suffix("").parts
        if "__main__" not in rest and "commands" not in rest:
            names = [name.split(".") for name in imports(path)]
            found[unit] |= {name[1] for name in names if name[0] == "dollar_jax"} - {unit}
    return found


def test_no_package_imports_one_that_imports_it():
    TopologicalSorter(graph(ROOT)).prepare()


def test_a_circle_would_be_seen(tmp_path):
    for name, code in {"a/x": "from dollar_jax.b import y", "b": "def f():\n    import dollar_jax.a.x"}.items():
        path = tmp_path / "dollar_jax" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path)).prepare()


def test_the_package_knows_no_config_and_no_test():
    for path in (ROOT / "dollar_jax").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"configs", "tests", "benchmarks"}, path
