"""Dataset folders of strangers: nothing in them runs or leads outside, and what is damaged is one line."""

import json
import shutil

import numpy as np
import pytest

from dollar_jax.data.dataset import open_dataset, write_dataset
from dollar_jax.errors import UserError

TENSOR = "tensorflow_datasets.core.features.tensor_feature.Tensor"
VIDEOS = "captioned_videos-videos.array_record-00000"


def example(index):
    return {"video": np.full((3, 4, 4, 3), index, np.uint8), "caption": f"video {index}"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "data"
    write_dataset(folder, map(example, range(3)), {"fps": 8})
    return folder


@pytest.fixture
def folder(written, tmp_path, monkeypatch):
    """A dataset, and a module beside it that shows whether it was imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stranger.py").write_text("import pathlib\npathlib.Path('attacked').touch()\n")
    shutil.copytree(written, tmp_path / "data")
    shutil.copytree(written, tmp_path / "outside")
    return tmp_path / "data"


def change(folder, file, /, *path, **values):
    """Sets fields of a JSON file, those of the object at `path` in it."""
    content = json.loads((folder / file).read_text())
    place = content
    for step in path:
        place = place[step]
    place.update(values)
    (folder / file).write_text(json.dumps(content))


def features(**values):
    return lambda folder: change(folder, "features.json", "featuresDict", "features", **values)


def info(**values):
    return lambda folder: change(folder, "dataset_info.json", **values)


def split(**values):
    return lambda folder: change(folder, "dataset_info.json", "splits", 0, **values)


def replace(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(share):
    def damage(folder):
        content = (folder / VIDEOS).read_bytes()
        (folder / VIDEOS).write_bytes(content[: int(len(content) * share)])

    return damage


def link_out(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / "outside" / name)

    return damage


def legacy(folder):
    """The format of TFDS 4.0 to 4.4: a dict of `type` and `content`."""
    fields = {"caption": {"type": "stranger.Feature", "content": {}}}
    content = {"type": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "content": fields}
    (folder / "features.json").write_text(json.dumps(content))


CODE = {"pythonClassName": "stranger.Feature", "jsonFeature": {"json": "{}"}}
TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
FAULTS = {
    "code": (features(caption=CODE), "features.json: featuresDict.features.caption"),
    "code as a tensor": (
        features(video={"pythonClassName": "stranger.Feature", "tensor": {"dtype": "uint8"}}),
        "features.video.pythonClassName",
    ),
    "code in another spelling": (features(more={"python_class_name": "stranger.Feature", "text": {}}), "features.more"),
    "code in the old format": (legacy, "features.json: "),
    "code at the top": (lambda f: change(f, "features.json", pythonClassName="stranger.Feature"), "pythonClassName"),
    "code in a sequence": (
        features(
            more={
                "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
                "sequence": {"feature": CODE},
            }
        ),
        "features.more",
    ),
    "code in the info": (info(features=CODE), "dataset_info.json: .*'features' was unexpected"),
    "module": (info(moduleName="stranger"), "moduleName"),
    "name of a feature": (features(**{"../x": TEXT}), "'../x' does not match"),
    "files elsewhere": (split(filepathTemplate="../outside/{DATASET}-{SPLIT}-{SHARD_INDEX}"), "filepathTemplate"),
    "absolute files": (split(filepathTemplate="/etc/passwd"), "filepathTemplate"),
    "files elsewhere by the name": (info(name="../outside/captioned_videos"), "name: "),
    "files elsewhere by the split": (split(name="../x"), "splits.0.name"),
    "other format": (info(fileFormat="tfrecord"), "fileFormat"),
    "link to the data": (link_out(VIDEOS), f"points to '{VIDEOS}', outside itself"),
    "link to the features": (link_out("features.json"), "points to 'features.json', outside itself"),
    "link to the info": (link_out("dataset_info.json"), "points to 'dataset_info.json', outside itself"),
    "link to the metadata": (link_out("metadata.json"), "points to 'metadata.json', outside itself"),
    "link to the names": (
        lambda f: (f / "files.txt").symlink_to(f.parent / "outside" / "metadata.json"),
        "points to 'files.txt', outside itself",
    ),
    "too few names": (replace("files.txt", b"a\nb\n"), "files.txt has 2 of 3 names"),
    "names that are no text": (replace("files.txt", b"\xff\n" * 3), "files.txt is not UTF-8 text"),
    "no features": (lambda f: (f / "features.json").unlink(), "features.json is missing"),
    "no data": (lambda f: (f / VIDEOS).unlink(), "data: damaged, copy the dataset again"),
    "no JSON": (replace("features.json", b'{"a'), "features.json is not JSON"),
    "binary": (replace("dataset_info.json", b"\xff\xfe"), "dataset_info.json is not JSON"),
    "list": (replace("metadata.json", b"[]"), "metadata.json is not a JSON object"),
    "words for sizes": (lambda f: change(f, "metadata.json", frames="9"), "metadata.json: frames: '9' is not of type"),
    "no captions": (lambda f: change(f, "features.json", "featuresDict", features={}), "'caption' is a required"),
    "no splits": (info(splits=[]), "dataset_info.json: splits"),
    "another split": (split(name="images"), "data: damaged, copy the dataset again"),
    "too many examples": (split(shardLengths=["5"]), "has 3 of 5 examples"),
    "too many files": (split(shardLengths=["3", "3"]), "data: damaged, copy the dataset again"),
    "odd numbers": (split(shardLengths=[3.5]), "shardLengths"),
    "odd type": (features(video={"pythonClassName": TENSOR, "tensor": {"dtype": "object"}}), "video.tensor.dtype"),
    "empty data": (cut(0), "damaged, copy the dataset again"),
    "cut in half": (cut(0.5), "damaged, copy the dataset again"),
    "end cut off": (cut(0.999), "damaged, copy the dataset again"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refusals_are_one_line(folder, fault):
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError, match=words) as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "attacked").exists()


def shape(*dimensions):
    return {"dtype": "uint8", "encoding": "bytes", "shape": {"dimensions": list(dimensions)}}


def damage_bytes(folder):
    """In the middle of what is stored, where a checksum finds it."""
    content = bytearray((folder / VIDEOS).read_bytes())
    places = np.flatnonzero(np.frombuffer(content, np.uint8))
    content[places[len(places) // 4]] ^= 1
    (folder / VIDEOS).write_bytes(content)


other_shape = features(video={"pythonClassName": TENSOR, "tensor": shape("-1", "999999999", "5", "3")})


@pytest.mark.parametrize("damage", [damage_bytes, other_shape])
def test_damaged_examples_are_one_line(folder, damage):
    damage(folder)
    dataset = open_dataset(folder)
    with pytest.raises(UserError, match=r"data: example \d of the videos: damaged, copy the dataset again") as caught:
        list(map(dataset.__getitem__, range(3)))
    assert "\n" not in str(caught.value)


def test_a_link_to_a_dataset_and_the_cache_of_the_hub_are_read(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert open_dataset(tmp_path / "link")[2]["caption"] == "video 2"
    blobs, snapshot = tmp_path / "datasets--x" / "blobs", tmp_path / "datasets--x" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(folder.iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert open_dataset(snapshot)[2]["caption"] == "video 2"
