"""A preference study of two models: the pairs of videos, the assignment of pairs and sides to raters, the answers.

The assignment depends only on hashes of names, so that a restarted server continues where it stopped.
"""

import fcntl
import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dollar_jax.errors import UserError
from dollar_jax.evaluate.samples import find_samples


class Question(NamedTuple):
    key: str
    name: str
    hint: str


QUESTIONS = (
    Question("visual_quality", "Visual quality", "Which one is sharper, cleaner, better lit, nicer to look at?"),
    Question("alignment", "Text-video alignment", "Which one shows more of what the prompt says?"),
    Question("motion", "Motion", "Which one moves more naturally: lively, steady, without jumps or flicker?"),
    Question("preference", "General preference", "All in all, which one do you prefer?"),
)
CHOICES = ("left", "equal", "right")
LONGEST = 80  # most characters of a rater's name


class Pair(NamedTuple):
    """The videos of both models for one prompt and noise."""

    name: str
    prompt: str
    videos: Mapping[str, Path]  # model -> file


class Task(NamedTuple):
    """A pair with the sides on which one rater sees the models."""

    pair: Pair
    left: str  # model
    right: str


@dataclass(frozen=True)
class Study:
    """Two models, the pairs of their videos, and the file of answers.

    Attributes:
      models: names of the models; winning rates are of the first.
      pairs: all pairs.
      count: number of pairs that each rater is asked about.
      answers: a file of JSON lines, see `record`.
    """

    models: tuple[str, str]
    pairs: Sequence[Pair]
    count: int
    answers: Path


def find_pairs(folders: Mapping[str, Path], prompts: Sequence[str]) -> list[Pair]:
    """The pairs of videos with the same name in both folders.

    Args:
      folders: model -> folder of its videos, `{prompt:05d}-{video}.mp4`.
      prompts: the prompts, indexed by the number in a file's name.
    Raises:
      UserError: there is no pair, or a file's number has no prompt.
    """
    videos = {model: find_samples(folder) for model, folder in folders.items()}
    shared = sorted(set.intersection(*(set(found) for found in videos.values())))
    if not shared:
        raise UserError(f"{' and '.join(map(str, folders.values()))} have no video of the same name")
    if shared[-1].prompt >= len(prompts):
        raise UserError(f"there are videos of prompt {shared[-1].prompt}, but --prompts has {len(prompts)}, from 0")
    return [
        Pair(str(name), prompts[name.prompt], {model: found[name] for model, found in videos.items()})
        for name in shared
    ]


def agenda(study: Study, rater: str) -> list[Task]:
    """The tasks of a rater, in order: `study.count` random pairs, with the models on random sides."""
    models = sorted(study.models)

    def draw(pair: Pair) -> bytes:
        return hashlib.sha256("\n".join([rater, pair.name, *models]).encode()).digest()

    drawn = sorted((draw(pair), pair) for pair in study.pairs)[: study.count]
    # The last byte decides the side, because the first bytes decide the order.
    return [Task(pair, *(models if digest[-1] % 2 else models[::-1])) for digest, pair in drawn]


def remaining(study: Study, rater: str) -> list[Task]:
    """The tasks of the agenda that the rater has not answered."""
    done = {
        answer["pair"]
        for answer in read_answers(study.answers)
        if answer["rater"] == rater and set(answer["models"]) == set(study.models)
    }
    return [task for task in agenda(study, rater) if task.pair.name not in done]


def identity(name: str) -> str:
    """A rater's name without accidental differences: spaces, capitals, forms of Unicode."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def is_name(identity: str) -> bool:
    """Whether a name is short and has no control characters, which are invisible or do harm in a terminal."""
    return 0 < len(identity) <= LONGEST and identity.isprintable()


def record(study: Study, rater: str, task: Task, choices: Mapping[str, str], time: float) -> None:
    """Appends an answer to `study.answers`, and returns when it is on the disk.

    A line is {"time" (Unix, s), "rater", "models": both, "pair", "prompt", "left": model, "right": model, and for
    each key of `QUESTIONS` "left", "equal" or "right"}. A later line of the same rater and pair replaces it.
    """
    line = {
        "time": time,
        "rater": rater,
        "models": study.models,
        "pair": task.pair.name,
        "prompt": task.pair.prompt,
        "left": task.left,
        "right": task.right,
        **{question.key: choices[question.key] for question in QUESTIONS},
    }
    data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
    # Unbuffered: a write truncated by a full disk is noticed here. A truncated line must not merge with the next one.
    with study.answers.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, no other thread or server appends
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                data = b"\n" + data
        if file.write(data) < len(data):
            raise OSError(f"{study.answers}: the disk is full")
        os.fsync(file.fileno())


def create(answers: Path) -> None:
    """Creates a missing file of answers, and syncs its folder, so that a crash of the machine does not lose the file.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        answers.parent.mkdir(parents=True, exist_ok=True)
        answers.open("ab").close()
        folder = os.open(answers.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise UserError(f"--answers={answers} cannot be written: {error}") from error


def read_answers(path: Path) -> list[dict]:
    """The valid answers in a file, oldest first. Other lines, such as one truncated by a crash, are skipped.

    Raises:
      UserError: the file cannot be read.
    """
    return [answer for answer in _read(path).values() if answer is not None]


def skipped_lines(path: Path) -> list[int]:
    """Numbers, from 1, of the lines in a file of answers that are neither empty nor a valid answer."""
    return [number for number, answer in _read(path).items() if answer is None]


def _read(path: Path) -> dict[int, dict | None]:
    """Line number -> answer for the lines that are not empty; None for a line that is not a valid answer."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"--answers={path}: {error.strerror}") from error
    return {number: _parse(line) for number, line in enumerate(lines, 1) if line.strip()}


def _parse(line: bytes) -> dict | None:
    try:
        answer = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) and _is_answer(answer) else None


def _is_answer(answer: Mapping) -> bool:
    names = "rater", "pair", "left", "right", *(question.key for question in QUESTIONS)
    words = [answer.get(name) for name in names]
    left, right, *choices = words[2:]
    return (
        all(isinstance(word, str) for word in words)
        and answer.get("models") in ([left, right], [right, left])
        and left != right
        and (left + right).isprintable()  # they are printed in a terminal
        and set(choices) <= set(CHOICES)
    )
