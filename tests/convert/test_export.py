"""What goes into a folder that people publish, when the checkpoint came from a stranger."""

import ast
import json
import shutil

import pytest

from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.errors import UserError


@pytest.fixture(scope="module")
def converted(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "teacher"
    from_torch(plain, folder)
    return folder


@pytest.fixture
def teacher(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "teacher")


def change(folder, part, **fields):
    path = folder / "config.json"
    card = json.loads(path.read_text())
    card[part] |= fields
    path.write_text(json.dumps(card))


def refused(teacher, words):
    with pytest.raises(UserError, match=words) as refusal:
        to_torch(teacher, teacher.with_name("out"))
    assert "\n" not in str(refusal.value)
    assert not teacher.with_name("out").exists()


@pytest.mark.parametrize("path", ["../secret", "/etc", "link"])
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_nothing_from_outside_is_exported(teacher, part, path):
    shutil.copytree(teacher / part, teacher.parent / "secret")
    (teacher / "link").symlink_to(teacher.parent / "secret")
    change(teacher, part, path=path)
    refused(teacher, rf"{part}.path|outside itself")


def test_a_flipped_byte_is_not_exported(teacher):
    largest = max((teacher / "transformer").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    refused(teacher, "transformer is damaged .*has another checksum")


def test_a_source_names_no_code(teacher):
    """What came with the weights is a stranger's, too: our class wins, and references to code are dropped."""
    change(
        teacher, "transformer", source={"_class_name": "Evil", "auto_map": {"AutoModel": "evil.Model"}, "dropout": 0.0}
    )
    change(teacher, "text_encoder", source={"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Model"}})
    out = teacher.with_name("out")
    to_torch(teacher, out)
    described = {name: json.loads((out / name / "config.json").read_text()) for name in ("transformer", "text_encoder")}
    assert described["transformer"]["_class_name"] == "CogVideoXTransformer3DModel"
    assert described["text_encoder"]["architectures"] == ["T5EncoderModel"]
    assert not any("auto_map" in config or "evil" in json.dumps(config).lower() for config in described.values())


def test_a_readme_is_code_of_ours_only(teacher):
    """Its name is the user's, its numbers are a card's: both stay what they are."""
    out = teacher.with_name('a"); import os; ("')
    to_torch(teacher, out)
    code = (out / "README.md").read_text().split("```")[1].removeprefix("python\n")
    imported = [
        alias.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for alias in node.names
    ]
    assert imported == ["torch"]
    (name,) = [
        node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant) and "os" in str(node.value)
    ]
    assert name == out.name
    shutil.rmtree(out)
    path = teacher / "config.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"guidance": "5); import os; os.system('x'"}))
    refused(teacher, "guidance")
    path.write_text(json.dumps(card | {"hub": {"repository": "a/b](http://x) [", "commit": "0a" * 20}}))
    refused(teacher, "hub.repository")


def test_a_readme_says_where_the_weights_come_from(teacher):
    path = teacher / "config.json"
    hub = {"repository": "some/model", "commit": "0a" * 20}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hub": hub}))
    out = teacher.with_name("out")
    to_torch(teacher, out)
    page = f"https://huggingface.co/some/model/tree/{'0a' * 20}"
    assert f"From [some/model]({page}), commit `{'0a' * 20}`." in (out / "README.md").read_text().splitlines()
