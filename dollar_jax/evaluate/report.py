"""Writes the report of one run or several: a self-contained page, report.md, and report.json for programs."""

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
    """Writes the report of a run. Reports of several runs read its clips from `folder/clips`.

    Args:
      rows: one dict per model with the keys "model", a unique name ("teacher" must exist, "data" may); "videos"; except
        for data "objectives", "steps" and "calls", the network calls for a video; and the values of the columns by
        their keys. Other keys go to report.json. None and nan are unknown values.
      columns: columns of the metrics, and of other values in the rows.
      clips: model -> its videos of n prompts, with the same prompts and noise for every model.
      curves: stage -> lines of its log (`metrics.read`).
      meta: "title"; "student", name of the model that the page presents; "captions" of the n prompts; perhaps
        "variety", the numbers of clips of one prompt, of which the first also stands among the others; "fps";
        "command", which repeats the run; "machine", on which times were measured; "configs", name -> text of a config.

    Raises:
      ValueError: a model with clips has no row or several, the teacher or the student has no clips, or a model does not
        have one clip for each caption.
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
    """Writes `folder/index.html`, `folder/report.md` and `folder/report.json`.

    Args:
      rows: as in `write_report`; for several variants with the key "variant", for several runs with "std" and "seeds".
      columns: as in `write_report`.
      clips: `label` of a row -> its clips.
      curves: for each run, the name of its variant and its curves as in `write_report`.
      meta: as in `write_report`, and "look", the `Look` of the clips; "students", variant -> model that the page
        presents; "runs", for several runs a list of dicts with "variant", "seed" and "workdir", else []; with several
        runs also "differences", field of the config -> variant -> value.
    """
    clips = {label(row): clips[label(row)] for row in rows if label(row) in clips}
    # All contents are made before the first file is written: a mistake in `meta` leaves the old report complete.
    # report.json is written last: it marks the report as complete.
    numbers = {"rows": rows, "columns": [asdict(column) for column in columns], "meta": meta}
    contents = {
        "index.html": make_page(rows, columns, clips, curves, meta),
        "report.md": make_text(rows, columns, meta),
        "report.json": json.dumps(finite(numbers), indent=1, ensure_ascii=False) + "\n",
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
