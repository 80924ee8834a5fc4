"""The guides: commands have flags that exist and values that parse, links lead somewhere, examples are complete."""

import ast
import builtins
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from dollar_jax.config import reward
from dollar_jax.evaluate.__main__ import COMMANDS
from dollar_jax.importing import resolve

ROOT = Path(__file__).parents[1]
GUIDES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
INDENTED = re.compile(r"^ {4}(.*)", re.M)
# What a module takes beside flags.
WORDS = {
    "dollar_jax.convert.__main__": r"((from|to)_torch \S+|extract_lora \S+ \S+) \S+",
    "benchmarks.convert": r"\S+ \S+",
}

# Prints what the module's flags say against the command lines on stdin.
PARSE = """
import importlib, json, sys
from absl import flags
from ml_collections import config_flags

from dollar_jax.config import put_named, take_named

module = sys.argv[1]
importlib.import_module(module)
defined = flags.FLAGS.flags_by_module_dict()
for line in json.load(sys.stdin):
    line, named = take_named(line)
    sys.argv = [module, *line]  # where a config looks for its fields
    values = flags.FlagValues()
    for flag in defined[module] + defined.get("dollar_jax.cli", []):
        if flag.name != "config":
            flags.DEFINE_flag(flag, values)
        else:
            config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    try:
        values(sys.argv)
        if "config" in values and values.config:  # raises if the file is missing
            put_named(values.config, named)
    except Exception as error:
        print(*sys.argv, "->", str(error).splitlines()[-1])
"""


def by_guide(test):
    return pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)(test)


def text_of(guide):
    """Without its examples."""
    return INDENTED.sub("", FENCED.sub("", guide.read_text()))


def commands(guide):
    """The words of each command of ours: lines of the examples, and what stands between backticks in the text."""
    text = guide.read_text().replace("\\\n", " ")
    blocks = [block for language, block in FENCED.findall(text) if language != "python"]
    lines = "\n".join([*blocks, *INDENTED.findall(FENCED.sub("", text))]).splitlines()
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text_of(guide))]
    for command in (command for line in [*lines, *spans] for command in line.split("&&")):
        if re.search(r"-m (dollar_jax|tests)\b|(?<!\S)launch/|pip install|^--config\.", command):
            yield shlex.split(re.sub(r"=N\b", "=1", command), comments=True)


def calls(words):
    """(module, arguments) of each module that a command runs, itself or by a launcher. A bare name runs nothing."""
    if words[0].startswith("--config."):
        return [("dollar_jax.main", ["--config=configs/dollar.py", *words])]
    if "-m" in words:
        module, *arguments = [word for word in words[words.index("-m") + 1 :] if word != "--help"]
        if module == "dollar_jax.evaluate" and arguments:
            names = COMMANDS if arguments[0] == "COMMAND" else arguments[0].strip("{}").split(",")
            return [(COMMANDS[name], arguments[1:]) for name in names]
        package = importlib.util.find_spec(module).submodule_search_locations
        return [(f"{module}.__main__" if package else module, arguments)] * bool(arguments)
    configs = [i for i, word in enumerate(words) if re.fullmatch(r"configs/\w+\.py", word)]
    return [("dollar_jax.main", [f"--config={words[i]}", *words[i + 2 :]]) for i in configs]


def test_the_commands_can_be_given():
    lines, wrong = defaultdict(list), ""
    for guide in GUIDES:
        for words in commands(guide):
            for module, arguments in calls(words):
                others = " ".join(word for word in arguments if not word.startswith("--"))
                if not re.fullmatch(WORDS.get(module, ""), others):
                    wrong += f"{module}: {others} is not a flag ({guide.name})\n"
                lines[module].append([word for word in arguments if word.startswith("--")])
    assert lines.keys() >= {"dollar_jax.main", "dollar_jax.laboratory", *COMMANDS.values()}
    for module, given in lines.items():
        if any(given):
            program = [sys.executable, "-c", PARSE, module]
            run = subprocess.run(program, input=json.dumps(given), capture_output=True, text=True, cwd=ROOT)
            wrong += run.stdout if run.returncode == 0 else run.stderr
    assert not wrong, wrong


@by_guide
def test_what_is_installed_launched_or_named_exists(guide):
    for words in commands(guide):
        if "install" in words:
            for word in words[words.index("install") + 1 :]:
                assert word in ("-r", ".") or (ROOT / word).is_file() or Requirement(word), word
        for word in words:
            if word.startswith("launch/"):
                assert os.access(ROOT / word, os.X_OK if word.endswith(".sh") else os.R_OK), word
    for path in re.findall(r"`((?:configs|docs|dollar_jax|launch|tests)/[\w./]+)`", text_of(guide)):
        assert "NAME" in path or (ROOT / path).exists(), path


@by_guide
def test_links_lead_somewhere(guide):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(guide)):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            found = guide.parent / name if name else guide
            assert found.exists(), target
            headings = re.findall(r"^#+ (.*)", found.read_text(), re.M) if anchor else []
            anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert not anchor or anchor in anchors, target


@by_guide
def test_examples_import_what_they_use(guide):
    for language, code in FENCED.findall(guide.read_text()):
        if language == "python":
            nodes = list(ast.walk(ast.parse(code)))
            names = [node for node in nodes if isinstance(node, ast.Name)]
            bound = {"config", *dir(builtins), *(name.id for name in names if isinstance(name.ctx, ast.Store))}
            bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
            bound |= {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
            assert {name.id for name in names} <= bound, code


def test_rewards_are_listed_once_and_fields_with_the_defaults_of_a_config():
    text = (ROOT / "docs/rewards.md").read_text()
    table = text.partition("## Built-in rewards")[2].partition("\n## ")[0]
    names = Counter(re.findall(r"^\| `([\w.:]+)` \|", table, re.M))
    assert names.total() == len(names) > 10, names
    assert all(resolve(name, "dollar_jax.rewards") for name in names)
    for field, default in re.findall(r"^\| `(frames|timeout)` \|.*\| (\d+) \|$", text, re.M):
        assert reward("brightness", channels=4, batch_size=1)[field] == int(default), field


def test_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.findall(r"^## \[(\d.*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == version


def test_requirements_end_before_versions_that_were_not_tested():
    text = "".join((ROOT / name).read_text() for name in ("requirements.txt", "tests/requirements.txt"))
    found = [Requirement(line.partition("  #")[0]) for line in re.findall(r"^\w.*", text, re.M)]
    assert [one.name for one in found if not re.search("<|==", str(one.specifier))] == ["jax"]  # with the extra tpu
