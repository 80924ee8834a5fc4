"""Datasets on disk: captioned videos, or their latents and text embeddings, as a TFDS dataset in ArrayRecord files.

Any TFDS reader opens such a dataset (`tfds.builder_from_directory`). Videos and images have different frame counts, so
they are two splits, and `dollar_jax.data.pipeline` never mixes them in a batch; prompts alone are a third split. TFDS
takes a second to import, so functions import it.

A dataset may come from outside. TFDS imports every module and opens every file that the dataset's metadata names, so
the metadata is checked first: only the content that `write_dataset` writes is accepted.
"""

import bisect
import errno
import itertools
import operator
import os
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dollar_jax.errors import UserError, first_line
from dollar_jax.files import new_folder
from dollar_jax.reading import inside, object_schema, read_json, read_lines, require_schema

SHARD_BYTES = 2**32  # bytes of a file: all files of a dataset stay open while it is read
BLOCK_BYTES = 2**26  # bytes collected in memory before writing
NAME, VERSION = "captioned_videos", "1.0.0"
SPLITS = "videos", "images", "prompts"
FILES = "files.txt"  # the name of each example's file, a line each, in the order of the dataset
_ORIGIN = "only datasets written by python -m dollar_jax.data are opened"

Example = Mapping[str, np.ndarray | str]


@runtime_checkable
class Source(Protocol):
    """Random access to examples. An example is a function of its index alone; None marks an example to leave out."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example | None: ...


def write_dataset(folder: str | os.PathLike, examples: Iterable[Example], info: Mapping[str, Any]) -> int:
    """Writes a new dataset, whose folder appears only when it is complete. Returns the number of examples.

    Args:
      folder: must not exist yet.
      examples: dicts with the same names and types: 'video' uint8 [f H W 3] or 'latents' [f h w c] with any f or
        neither, 'text' [l d] with any l, other arrays of a fixed shape, strings. The first examples determine the
        number of examples per file: large ones come first. 'file', the name of the file that the example is from, is
        not read back with the example: it becomes one of `Dataset.files`.
      info: facts about the whole dataset for its readers, as JSON.

    Raises:
      UserError: the folder exists or cannot be written, or there are no examples.
    """
    import tensorflow_datasets as tfds

    blocks = blocks_of(examples)
    with new_folder(folder) as temporary:
        begin = next(blocks, None)
        if begin is None:
            raise UserError(f"{folder}: nothing to write")
        first, size = begin[0], sum(map(bytes_of, begin)) / len(begin)
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=NAME, version=tfds.core.Version(VERSION), data_dir=str(temporary), module_name=__name__
        )
        columns = {name: value for name, value in first.items() if name != "file"}
        features = tfds.features.FeaturesDict({name: _feature(name, value) for name, value in columns.items()})
        writer = tfds.core.SequentialWriter(
            tfds.core.DatasetInfo(builder=identity, features=features, metadata=tfds.core.MetadataDict(info)),
            max_examples_per_shard=max(1, int(SHARD_BYTES / size)),
            file_format="array_record",
        )
        count, files = 0, {split: [] for split in SPLITS}
        for block in itertools.chain([begin], blocks):
            by_split = {}
            for example in block:
                columns, split = dict(example), _split(example)
                files[split] += [columns.pop("file")] if "file" in columns else []
                by_split.setdefault(split, []).append(columns)
            with _writing(folder):
                writer.initialize_splits(list(by_split), fail_if_exists=False)
                writer.add_examples(by_split)
            count += len(block)
        with _writing(folder):
            writer.close_all()
            if names := list(itertools.chain(*files.values())):
                (temporary / FILES).write_bytes("".join(f"{name}\n" for name in names).encode())
    return count


class Dataset:
    """Random access to all examples: videos first, then images; or prompts.

    Attributes:
      parts: one source for each frame count, because a batch needs equal frame counts.
      info: the `info` given to `write_dataset`.
      files: the file that each example is from, None if the dataset does not say.
    """

    def __init__(self, parts: Sequence[Source], info: Mapping[str, Any], files: Sequence[str] | None = None):
        self.parts, self.info, self.files = parts, info, files
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example | None:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - self._ends[part] + len(self.parts[part])]


def open_dataset(folder: str | os.PathLike) -> Dataset:
    """Opens a dataset written by `write_dataset`.

    Raises:
      UserError: the folder holds no such dataset, or the dataset is damaged.
    """
    import tensorflow_datasets as tfds

    _allow_open_files()
    folder = Path(folder)
    if not (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder}: no dataset here; write one with python -m dollar_jax.data")
    for name, schema in _FILES.items():
        require_schema(read_json(inside(folder, name)), schema, folder / name, _ORIGIN)
    with _reading(folder):
        builder = tfds.builder_from_directory(folder)
        splits = {name: builder.info.splits[name] for name in SPLITS if name in builder.info.splits}
        for split in splits.values():
            for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
                _require_records(inside(folder, path.name), length)
        parts = [_Split(folder, name, builder.as_data_source(name)) for name in splits]
    files = None
    if (folder / FILES).is_file():
        files = read_lines(inside(folder, FILES))[:-1]  # the last line ends too
        if len(files) != (count := sum(map(len, parts))):
            raise UserError(f"{folder}: damaged, copy the dataset again ({FILES} has {len(files)} of {count} names)")
    return Dataset(parts, read_json(inside(folder, "metadata.json")), files)


def joined(datasets: Sequence[Dataset]) -> Dataset:
    """One part with the examples of all these datasets of prompts in their order, and without info."""
    return Dataset([Dataset([part for dataset in datasets for part in dataset.parts], {})], {})


class _Split:
    """One split of a dataset, with strings decoded."""

    def __init__(self, folder: Path, name: str, source: Source):
        self._folder, self._name, self._source = folder, name, source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        with _reading(f"{self._folder}: example {index} of the {self._name}"):
            example = self._source[index]
            return {name: value.decode() if isinstance(value, bytes) else value for name, value in example.items()}


def _feature_schema(name: str, content: str, **properties) -> dict[str, Any]:
    kind = {"const": f"tensorflow_datasets.core.features.{name}"}
    return object_schema(("pythonClassName", content), pythonClassName=kind, **{content: object_schema(**properties)})


_COUNT = {"type": "string", "pattern": r"^\d{1,15}\Z"}
_TENSOR = _feature_schema(
    "tensor_feature.Tensor",
    "tensor",
    dtype={"type": "string", "pattern": r"^(bool|bfloat16|u?int(8|16|32|64)|float(16|32|64))\Z"},
    encoding={"const": "bytes"},
    shape=object_schema(dimensions={"type": "array", "items": {"type": "string", "pattern": r"^(-1|\d{1,9})\Z"}}),
)
_TEXT = _feature_schema("text_feature.Text", "text")
_FEATURES = {
    "type": "object",
    "propertyNames": {"pattern": r"^\w{1,100}\Z"},
    "additionalProperties": {"if": {"required": ["tensor"]}, "then": _TENSOR, "else": _TEXT},
    "required": ["caption"],
    "anyOf": [{"required": ["video"]}, {"required": ["text", "text_mask"]}],
}
_SPLIT = object_schema(
    ("name", "filepathTemplate", "shardLengths"),
    name={"enum": list(SPLITS)},
    filepathTemplate={"const": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"},
    numBytes=_COUNT,
    shardLengths={"type": "array", "items": _COUNT, "minItems": 1},
)
_FILES = {
    "dataset_info.json": object_schema(
        ("fileFormat", "name", "splits", "version"),
        fileFormat={"const": "array_record"},
        moduleName={"const": __name__},
        name={"const": NAME},
        splits={"type": "array", "items": _SPLIT, "minItems": 1, "maxItems": len(SPLITS)},
        version={"const": VERSION},
    ),
    "features.json": _feature_schema("features_dict.FeaturesDict", "featuresDict", features=_FEATURES),
    "metadata.json": {"properties": {name: {"type": "number"} for name in ("frames", "height", "width", "fps")}},
}


def _require_records(path: Path, count: int) -> None:
    """Raises RuntimeError if an ArrayRecord file does not have `count` records; a truncated file may have none."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
    if found != count:
        raise RuntimeError(f"{path.name} has {found} of {count} examples")


def _allow_open_files() -> None:
    """Raises the number of files that this process may have open to what the system allows it; often it is 1,024."""
    with suppress(ValueError, OSError):  # macOS refuses its own limit
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))


@contextmanager
def _reading(place: str | os.PathLike) -> Iterator[None]:
    """Turns errors of reading into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TFDS, protobuf and ArrayRecord raise various exceptions
        if os.strerror(errno.EMFILE) in str(error):
            allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise UserError(
                f"{place}: too many open files, this process may have {allowed:,}: raise the limit, ulimit -n 65536"
            ) from error
        raise UserError(f"{place}: damaged, copy the dataset again ({first_line(error)})") from error


@contextmanager
def _writing(folder: str | os.PathLike) -> Iterator[None]:
    """Turns errors of writing, for instance a full disk, into a UserError of one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
        raise UserError(f"{folder} cannot be written: {str(error).partition('; writing')[0]}") from error


def blocks_of(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Groups examples into blocks of about `BLOCK_BYTES`, because each call of TFDS's writer is slow."""
    block, size = [], 0
    for example in examples:
        block.append(example)
        size += bytes_of(example)
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def bytes_of(example: Example) -> int:
    """Bytes of the values of an example, before compression."""
    return sum(len(value.encode()) if isinstance(value, str) else value.nbytes for value in example.values())


def _split(example: Example) -> str:
    clip = example.get("latents", example.get("video"))
    return "prompts" if clip is None else "images" if len(clip) == 1 else "videos"


def _feature(name: str, value: np.ndarray | str):
    import tensorflow_datasets as tfds

    if isinstance(value, str):
        return tfds.features.Text()
    shape = (None, *value.shape[1:]) if name in ("video", "latents", "text") else value.shape
    return tfds.features.Tensor(shape=shape, dtype=value.dtype, encoding="bytes")
