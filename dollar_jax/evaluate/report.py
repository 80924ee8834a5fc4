"""The report of a run, or of several: a self-contained page, report.md for people and report.json for programs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dollar_jax.evaluate.measure import Column
from dollar_jax.evaluate.report_clips import Clip, Look, make_clip, write_clips
from dollar_jax.evaluate.report_page import Curves, make_page
from dollar_jax.evaluate.report_rows import TEACHER, finite, label
from dollar_jax.evaluate.report_text import make_text
from dollar_jax.files import write_atomically


def write_report(
    folder: str | os.PathLike,
    rows: Sequence[Mapping],
    columns: Sequence[Column],
    clips: Mapping[str, UInt8[np.ndarray, "n f h w 3"]],
    curves: Mapping[str, Sequence[Mapping]],
    meta: Mapping,
) -> None:
    """Writes the report of a run, and its clips in `folder/clips`, from which reports of several runs are made.

    Args:
      rows: a dict for each model: "model" (a name of its own; "teacher" is one, "data" may be), "videos", but for data
        "objectives", "steps" and "calls" of the network a video, and numbers of the columns by their keys. More
        keys go to report.json. None and nan are unknown.
      columns: of the metrics, and what else was measured of the models.
      clips: model -> its videos of n prompts, the same prompts and noise for every model.
      curves: stage -> the lines of its log (`metrics.read`).
      meta: "title"; "student", the model that the page presents; "captions" of the n prompts; "fps"; "command" that
        repeats the run; "machine" that the times were taken on; "configs", name -> the text of a configuration.

    Raises:
      ValueError: a model with clips and two rows or none, no clips of the teacher or the student, or not one clip of
        every caption.
    """
    names = [row["model"] for row in rows]
    lacking = [*(set(clips) - set(names)), *({TEACHER, meta["student"]} - set(clips))]
    if lacking or len(set(names)) < len(names):
        raise ValueError(f"every model needs one row, teacher and student clips: {lacking} lack them, rows are {names}")
    if {len(videos) for videos in clips.values()} != {len(meta["captions"])}:
        raise ValueError(f"{len(meta['captions'])} captions, but {[len(videos) for videos in clips.values()]} clips")
    made = {name: [make_clip(video, meta["fps"]) for video in clips[name]] for name in names if name in clips}
    for name, videos in made.items():
        write_clips(Path(folder) / "clips" / name, videos)
    look = Look(*clips[TEACHER].shape[1:4], meta["fps"])
    more = {"look": look, "students": {"": meta["student"]}, "clips": list(made), "stages": list(curves), "runs": []}
    write(Path(folder), rows, columns, made, [("", curves)], {**meta, **more})


def write(
    folder: Path,
    rows: Sequence[Mapping],
    columns: Sequence[Column],
    clips: Mapping[str, Sequence[Clip]],
    curves: Curves,
    meta: Mapping,
) -> None:
    """Writes `folder/index.html`, which needs no network, `folder/report.md` and `folder/report.json`.

    Args:
      rows: as in `write_report`, and where there are several variants "variant"; of several runs "std" and "seeds".
      columns: as in `write_report`.
      clips: `label` of a row -> its clips.
      meta: as in `write_report`, and "look" of the clips; "students", variant -> the model that the page presents;
        "runs", a dict of "variant", "seed" and "workdir" each where there are several, and then "differences",
        field of the config -> variant -> value.
    """
    clips = {label(row): clips[label(row)] for row in rows if label(row) in clips}
    # All are made before one is written: a mistake in `meta` leaves the old report whole. report.json is the mark that
    # a run has its report, and comes last.
    numbers = {"rows": rows, "columns": [asdict(column) for column in columns], "meta": meta}
    contents = {
        "index.html": make_page(rows, columns, clips, curves, meta),
        "report.md": make_text(rows, columns, meta),
        "report.json": json.dumps(finite(numbers), indent=1, ensure_ascii=False) + "\n",
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
