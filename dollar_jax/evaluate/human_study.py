"""A study of which of two models people prefer: its pairs, who sees which on what side, and the file of answers.

What a rater sees follows from hashes of names alone, so that a server started again goes on where it was.
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
LONGEST = 80  # characters of a name


class Pair(NamedTuple):
    """A video of each model for the same prompt."""

    name: str
    prompt: str
    videos: Mapping[str, Path]  # by model


class Task(NamedTuple):
    """A pair as one rater sees it."""

    pair: Pair
    left: str  # model
    right: str


@dataclass(frozen=True)
class Study:
    """Two models, the pairs of their videos, and where the answers go.

    Attributes:
      models: their names; winning rates will be those of the first.
      pairs: all there are.
      count: how many of them a rater is asked about.
      answers: a file of JSON lines, see `record`.
    """

    models: tuple[str, str]
    pairs: Sequence[Pair]
    count: int
    answers: Path


def find_pairs(folders: Mapping[str, Path], prompts: Sequence[str]) -> list[Pair]:
    """The videos that both folders have.

    Args:
      folders: model -> its videos, `{prompt:05d}-{video}.mp4`.
      prompts: of these numbers.
    Raises:
      UserError: no pair, or a number that is no prompt's.
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
    """What a rater is asked, in order: `study.count` pairs drawn at random, each model at random on either side."""
    models = sorted(study.models)

    def draw(pair: Pair) -> bytes:
        return hashlib.sha256("\n".join([rater, pair.name, *models]).encode()).digest()

    drawn = sorted((draw(pair), pair) for pair in study.pairs)[: study.count]
    # Another byte than those that decide the order.
    return [Task(pair, *(models if digest[-1] % 2 else models[::-1])) for digest, pair in drawn]


def remaining(study: Study, rater: str) -> list[Task]:
    """What is left of the agenda."""
    done = {
        answer["pair"]
        for answer in read_answers(study.answers)
        if answer["rater"] == rater and set(answer["models"]) == set(study.models)
    }
    return [task for task in agenda(study, rater) if task.pair.name not in done]


def identity(name: str) -> str:
    """A rater's name without differences that people make without meaning to: spaces, capitals, forms of Unicode."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def is_name(identity: str) -> bool:
    """Whether it is short and has no control characters, which are seen nowhere or do harm in a terminal."""
    return 0 < len(identity) <= LONGEST and identity.isprintable()


def record(study: Study, rater: str, task: Task, choices: Mapping[str, str], time: float) -> None:
    """Appends an answer to `study.answers`, and returns when it is on the disk.

    A line is {"time" (Unix, s), "rater", "models": both, "pair", "prompt", "left": model, "right": model, and for
    each key of `QUESTIONS` "left", "equal" or "right"}. A later one of the same rater and pair replaces it.
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
    # Unbuffered: a write cut short by a full disk is seen here, and its piece of a line must not swallow the next one.
    with study.answers.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: no other thread or server appends meanwhile
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                data = b"\n" + data
        if file.write(data) < len(data):
            raise OSError(f"{study.answers}: the disk is full")
        os.fsync(file.fileno())


def create(answers: Path) -> None:
    """Makes the file of answers where there is none, so that a crash of the machine cannot lose its name.

    Raises:
      UserError: it cannot be written.
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
    """The answers in a file, oldest first; what else is in it, as a line that a crash cut short, does not count.

    Raises:
      UserError: there is no such file.
    """
    return [answer for answer in _read(path).values() if answer is not None]


def skipped_lines(path: Path) -> list[int]:
    """The numbers, from 1, of those lines of a file of answers that are neither empty nor an answer."""
    return [number for number, answer in _read(path).items() if answer is None]


def _read(path: Path) -> dict[int, dict | None]:
    """The lines that are not empty by their numbers; None is no answer."""
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
        and (left + right).isprintable()  # a terminal shows them
        and set(choices) <= set(CHOICES)
    )
