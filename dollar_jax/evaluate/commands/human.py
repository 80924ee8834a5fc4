"""python -m dollar_jax.evaluate human --videos=A=DIR --videos=B=DIR --prompts=P.txt --answers=F.jsonl: a web page where
people compare the videos of two models; evaluate human --answers=F.jsonl --results=rates.html: winning rates.

A and B are the models' names. The folders are written by `python -m dollar_jax.sample` with the same prompts and seed.
Each rater opens the printed address, enters a name, and sees pairs of videos on random sides. An answer is on the disk
before the next pair is shown, so the server may be stopped and started at any time. The results are the winning rates
of A.
"""

import sys
from pathlib import Path

from absl import flags

from dollar_jax.cli import required
from dollar_jax.errors import UserError

_VIDEOS = flags.DEFINE_multi_string("videos", [], "NAME=DIR, twice: a model and the folder of its videos.")
_PROMPTS = flags.DEFINE_string("prompts", None, "Text file with the prompts of the videos, one per line.")
_ANSWERS = flags.DEFINE_string("answers", None, "File to which the answers are appended, JSON lines.")
_COUNT = flags.DEFINE_integer("count", 50, "Number of pairs that each rater is asked about.", lower_bound=1)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 lets other machines in.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at.", lower_bound=0, upper_bound=65535)
_RESULTS = flags.DEFINE_string("results", None, "HTML file for the winning rates, also printed; starts no server.")


def main() -> None:
    required(_ANSWERS)
    if _RESULTS.value:
        _show_results()
    else:
        required(_VIDEOS, _PROMPTS)
        _serve()


def _show_results() -> None:
    from dollar_jax.evaluate.human_rates import compare, table, write_page
    from dollar_jax.evaluate.human_study import read_answers

    answers, results = Path(_ANSWERS.value), Path(_RESULTS.value)
    if results.resolve() == answers.resolve():
        raise UserError(f"--results={_RESULTS.value} is the file of answers: choose another one")
    comparisons = compare(read_answers(answers))
    _name_skipped(answers)
    if not comparisons:
        raise UserError(f"--answers={_ANSWERS.value} has no answers yet")
    print(table(comparisons))
    write_page(results, comparisons)


def _serve() -> None:
    from dollar_jax.data.prompts import read_prompts
    from dollar_jax.evaluate.human_app import create_app
    from dollar_jax.evaluate.human_guard import listen, own_names
    from dollar_jax.evaluate.human_study import Study, create, find_pairs

    folders = _folders(_VIDEOS.value)
    pairs = find_pairs(folders, read_prompts(_PROMPTS.value))
    answers = Path(_ANSWERS.value)
    create(answers)
    _name_skipped(answers)
    study = Study(tuple(folders), pairs, _COUNT.value, answers)
    try:
        server = listen(create_app(study, own_names(_HOST.value)), _HOST.value, _PORT.value)
    except OSError as error:
        raise UserError(f"--host={_HOST.value} --port={_PORT.value}: {error.strerror}; take another --port") from error
    print(f"{' against '.join(folders)}: {len(pairs)} pairs; answers go to {answers}", flush=True)
    host = f"[{_HOST.value}]" if ":" in _HOST.value else _HOST.value  # IPv6
    print(f"http://{host}:{server.effective_port}/  (Ctrl-C stops it, nothing is lost)", flush=True)
    server.run()


def _folders(videos: list[str]) -> dict[str, Path]:
    named = [video.partition("=") for video in videos]
    folders = {name: Path(folder) for name, _, folder in named}
    if len(folders) != 2 or len(videos) != 2 or not all(name and folder for name, _, folder in named):
        raise UserError(f"--videos wants NAME=DIR for two models, not {' '.join(videos)}")
    if strange := [name for name in folders if not name.isprintable()]:
        raise UserError(f"--videos: the name {strange[0]!r} has characters that cannot be printed")
    return folders


def _name_skipped(answers: Path) -> None:
    from dollar_jax.evaluate.human_study import skipped_lines

    if lines := skipped_lines(answers):
        named = ", ".join(map(str, lines[:5])) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
        words = "is not an answer and does not count" if len(lines) == 1 else "are not answers and do not count"
        print(f"warning: {answers}: line{'s' * (len(lines) > 1)} {named} {words}", file=sys.stderr, flush=True)
