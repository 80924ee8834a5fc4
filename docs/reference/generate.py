"""python -m docs.reference.generate [DIR]: writes the pages of this folder from the code."""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from dollar_jax import card, fields
from dollar_jax.__main__ import COMMANDS, COPY

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FULL = ("shapes", "dollar")  # configs that name all of their fields
# Each other config, and the one that it changes.
CHANGED = {
    "wan": "dollar",
    "wan_lora": "wan",
    "cogvideox_2b": "dollar",
    "cogvideox_lora": "cogvideox_2b",
    "teacher": "dollar",
    "shapes_wan": "shapes",
    "pairs": "shapes",
}
MADE = "<!-- Made by `python -m docs.reference.generate`: edit the code that it reads. -->\n\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in (head, *escaped)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n\n"


def shown(value: Any) -> str:
    """A value as one writes it in a config; a dictionary as fields."""
    if isinstance(value, ConfigDict | Mapping):
        return ", ".join(f"`{name}={flat!r}`" for name, flat in leaves(value)) or "`{}`"
    return f"`{value!r}`"


def leaves(tree: ConfigDict | Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every field."""
    for name, value in tree.items():
        if isinstance(value, ConfigDict | Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value.to_dict() if isinstance(value, ConfigDict) else value


def range_of(node: Mapping[str, Any], plural: str = "") -> str:
    """The values that a JSON schema allows, in words."""
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" if value else "`''`" for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(range_of(one) for one in node["anyOf"])
    if "prefixItems" in node:
        return f"({', '.join('one of ' + range_of(x) if 'enum' in x else range_of(x) for x in node['prefixItems'])})"
    kind = node.get("type")
    if kind in ("integer", "number"):
        signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        limits = [f"{sign} {node[rule]:,}".removesuffix(".0") for rule, sign in signs.items() if rule in node]
        return f"{kind}{plural} {', '.join(limits)}".rstrip()
    words = {"string": "text", "boolean": "`True`, `False`", "object": "fields", "null": "null"}
    return words.get(kind) or f"list of {range_of(node['items'], 's')}"


# Configs


def config_of(name: str) -> ConfigDict:
    """The config `configs/NAME.py`."""
    return importlib.import_module(f"configs.{name}").get_config()


def value_at(config: ConfigDict, path: str, write: Callable[[Any], str] = shown) -> str:
    """The value of a field in a table: nothing if the config has no such field."""
    for part in path.split("."):
        if part not in config:
            return ""
        config = config[part]
    return write(config)


def names_of(functions: ConfigDict) -> str:
    """The names in a dictionary."""
    return ", ".join(f"`{name}`" for name in functions)


def config_rows(node: Mapping[str, Any], configs: Sequence[ConfigDict], prefix: str = "") -> Iterator[list[str]]:
    """A row for each field below a node of `fields.SCHEMA`."""
    for name, field in node["properties"].items():
        path = prefix + name
        if field is fields.OPTIMIZER:
            yield [f"`{path}`", "[An optimiser](#optimisers).", "fields", "", ""]
        elif "properties" in field:
            yield from config_rows(field, configs, f"{path}.")
        elif path in ("generator.objectives", "report.metrics", "students"):
            yield [f"`{path}`", field["description"], "fields", *(value_at(one, path, names_of) for one in configs)]
        else:
            yield [f"`{path}`", field["description"], range_of(field), *(value_at(one, path) for one in configs)]


def optimizers(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of the optimisers below a node."""
    for name, field in node["properties"].items():
        if field is fields.OPTIMIZER:
            yield prefix + name
        elif "properties" in field:
            yield from optimizers(field, f"{prefix}{name}.")


def told(text: str) -> dict[str, str]:
    """Name -> meaning in the section `Args` of a docstring; names that share a line share the meaning."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(text) + "\n", re.M | re.S)
    entries = re.findall(r"^ {2}(\w[\w, ]*): (.*(?:\n {4}.*)*)", section[1] if section else "", re.M)
    return {name: " ".join(words.split()) for names, words in entries for name in names.split(", ")}


def options_of(function: Callable) -> list[list[str]]:
    """A row for each option of an objective or a metric: name, meaning, default."""
    kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = inspect.signature(function).parameters.values()
    meanings = told(function.__doc__)
    named = [one for one in found if one.kind in kinds and one.default is not inspect.Parameter.empty]
    return [[one.name, meanings[one.name], f"`{one.default!r}`"] for one in named]


def built_in(package: str) -> dict[str, Callable]:
    """The functions and classes of a package that have the name of their file, as a config names them."""
    names = sorted(path.stem for path in (ROOT / package.replace(".", "/")).glob("[a-z]*.py"))
    modules = {name: importlib.import_module(f"{package}.{name}") for name in names}
    return {name: getattr(module, name) for name, module in modules.items() if callable(getattr(module, name, None))}


def config_page() -> str:
    """Every field of a config: meaning, range, and values in the configs."""
    configs = [config_of(name) for name in FULL]
    head = ["field", "meaning", "values", *(f"`{name}.py`" for name in FULL)]
    page = MADE + (
        "# Fields of a config\n\n"
        "A config is a Python file with `get_config()`, in the folder `configs`. Every field can be set on the command"
        " line, `--config.FIELD=VALUE`, or in your copy of the file; a wrong value is refused before the run. The last"
        " columns have the values of `configs/shapes.py`, the shapes world, and of `configs/dollar.py`, the paper's"
        " recipe. [The other configs](#the-other-configs) change one of these two.\n\n"
    )
    plain = {name: node for name, node in fields.SCHEMA["properties"].items() if "properties" not in node}
    page += "## The run\n\n" + table(head, list(config_rows({"properties": plain}, configs)))
    for name, node in fields.SCHEMA["properties"].items():
        if "properties" in node:
            rows = list(config_rows(node, configs, f"{name}."))
            page += f"## {name}\n\n{node['description']}\n\n" + table(head, rows)
    page += "## Optimisers\n\n" + fields.OPTIMIZER["description"] + "\n\n"
    properties = fields.OPTIMIZER["properties"]
    page += table(head[:3], [[f"`{name}`", one["description"], range_of(one)] for name, one in properties.items()])
    rows = [
        [f"`{path}` of `{name}.py`", *(value_at(config, f"{path}.{field}") for field in properties)]
        for path in optimizers(fields.SCHEMA)
        for name, config in zip(FULL, configs, strict=True)
        if value_at(config, path)
    ]
    page += table(["optimiser", *(f"`{field}`" for field in properties)], rows)
    for title, package, place, guide in (
        ("Objectives", "dollar_jax.objectives", "generator.objectives", "../objectives.md"),
        ("Metrics", "dollar_jax.evaluate.metrics", "report.metrics", "../evaluate.md#metrics-reportmetrics"),
    ):
        page += f"## {title}\n\nOptions of the functions in `{place}`. [The guide]({guide}) says what each is for.\n\n"
        rows = [
            [f"`{name}.{option}`", meaning, default, *(value_at(one, f"{place}.{name}.{option}") for one in configs)]
            for name, function in built_in(package).items()
            for option, meaning, default in options_of(function)
        ]
        page += table(["option", "meaning", "default", *head[3:]], rows)
    page += "## The other configs\n\n"
    for name, base in CHANGED.items():
        module = importlib.import_module(f"configs.{name}")
        title = module.__doc__.partition("\n")[0]
        before, now = dict(leaves(config_of(base))), dict(leaves(module.get_config()))
        changes = [[f"`{path}`", shown(now[path])] for path in now if path not in before or now[path] != before[path]]
        page += f"### {name}\n\n{title} It changes `configs/{base}.py`:\n\n" + table(["field", "value"], changes)
    return page


# Commands


def help_of(flag: flags.Flag) -> str:
    """The meaning of a flag, without what absl adds: the choices in front, the advice to repeat it at the end."""
    text = " ".join(flag.help.split())
    return re.sub(r"^<[^>]*>: |;? repeat this option .*", "", text)


def flag_rows(module: str) -> list[list[str]]:
    """A row for each flag that a module defines, which are then forgotten: two commands may have a flag of one name."""
    before = set(flags.FLAGS)
    importlib.import_module(module)
    new = [flags.FLAGS[name] for name in flags.FLAGS if name not in before]
    rows = []
    for flag in sorted(new, key=lambda flag: flag.name):
        config = type(flag.parser).__module__.startswith("ml_collections")
        word = "FILE" if config else {"bool": "", "string": "TEXT"}.get(flag.flag_type(), "VALUE")
        if choices := getattr(flag.parser, "enum_values", None):
            word = "{" + ",".join(choices) + "}"
        default = "" if flag.default is None or config else f"`{flag.default!r}`"
        rows.append([f"`--{flag.name}{f'={word}' if word else ''}`", help_of(flag), default])
    flags.FLAGS.remove_flag_values([flag.name for flag in new])
    return rows


def command_section(title: str, module: str, level: int) -> str:
    """Heading, description and flags of a command. A package's command is its `__main__`."""
    text = ast.get_docstring(ast.parse(Path(importlib.util.find_spec(module).origin).read_text()))
    rows = flag_rows(module)
    section = f"{'#' * level} {title}\n\n```text\n{text}\n```\n\n"
    return section + (table(["flag", "meaning", "default"], rows) if rows else "")


def commands_page() -> str:
    """Every command with its flags, and the laboratory's experiments."""
    from dollar_jax.evaluate.__main__ import COMMANDS as EVALUATE

    page = MADE + (
        "# Commands\n\n"
        "`python -m dollar_jax.NAME` in a checkout; after `pip install`, `dollar-jax NAME` does the same. A wrong call"
        " is one line on stderr and exit status 2. Every command has `--help` and `--trust=MODULE`: "
        f"{help_of(flags.FLAGS['trust'])}\n\n"
    )
    page += table(["command", ""], [[f"`{name}`", words] for name, words in {**COMMANDS, "configs": COPY}.items()])
    for name in COMMANDS:
        found = importlib.util.find_spec(f"dollar_jax.{name}")
        page += command_section(name, found.name + (".__main__" if found.submodule_search_locations else ""), 2)
        if name == "evaluate":
            page += "".join(command_section(f"evaluate {one}", module, 3) for one, module in EVALUATE.items())
    experiments = importlib.import_module("configs.laboratory").EXPERIMENTS
    rows = [[f"`{name}`", inspect.cleandoc(function.__doc__)] for name, function in experiments.items()]
    return page + "### Experiments of configs/laboratory.py\n\n" + table(["`--experiment`", ""], rows)


# Checkpoints


def card_rows(node: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """A row for each field below a node of `card.SCHEMA`, except what is described in sections of their own."""
    for name, field in node["properties"].items():
        path = prefix + name
        yield [f"`{path}`", field["description"], range_of(field), "yes" if name in node["required"] else ""]
        inner = field.get("items", field)
        if "properties" in inner and name not in card.NETWORKS:
            yield from card_rows(inner, f"{path}[]." if "items" in field else f"{path}.")


def checkpoint_page() -> str:
    """The card, and the files beside it."""
    head = ["field", "meaning", "values", "needed"]
    page = MADE + (
        "# Checkpoints\n\nA model is a folder that can be moved and given away: no file in it points outside.\n\n"
    )
    page += table(
        ["file", "content"],
        [
            ["`config.json`", "the [card](#the-card)"],
            ["a folder for each network", "its parameters, in the format of Orbax, and `checksums.json`"],
            ["`tokenizer`", "a tokenizer of Hugging Face"],
            [
                "`checkpoints/NUMBER`",
                "of a training stage: the state after so many updates. Each network is an item that can be loaded"
                " alone, `student`, `ema`, `fake_score` or `params`; the item `state` has the rest",
            ],
            ["`checksums.json`", '`{"files": {NAME: [BYTES, SHA256]}}` for the files of its checkpoint'],
            ["`metrics.jsonl`, `events.out.tfevents.*`", "of a training stage: the log, a line for each measurement"],
        ],
    )
    page += (
        "## The card\n\n"
        "Paths are relative to the card's folder and stay inside it. A field that is not in the table is refused.\n\n"
    )
    page += table(head, list(card_rows(card.SCHEMA)))
    network = card.SCHEMA["properties"]["transformer"]
    page += "## A network in the card\n\n" + table(head, list(card_rows(network)))
    for schedule in card.SCHEMA["properties"]["schedule"]["oneOf"]:
        kind = schedule["properties"]["kind"]["const"]
        page += f"## A schedule of kind {kind}\n\n" + table(head, list(card_rows(schedule)))
    return page


PAGES = {"config": config_page, "commands": commands_page, "checkpoint": checkpoint_page}


def main(out: Path = HERE) -> None:
    """Writes the pages."""
    for name, page in PAGES.items():
        (out / f"{name}.md").write_text(page().rstrip() + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
