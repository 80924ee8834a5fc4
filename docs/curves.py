"""python -m docs.curves DIR: draws docs/curves.png from the run of the experiment `collapse` below DIR, seed 0."""

import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from dollar_jax import metrics

STUDENTS = {
    "healthy": "healthy",
    "over_guided": "over-guided: guidance 7.5",
    "fake_score_behind": "fake score left behind: a hundredth of its learning rate",
    "too_high": "collapsed: a hundred times the learning rate",
}
# Name in the log -> whether the value is relative to data. The axes of the others are logarithmic.
CURVES = {
    "loss/variational_score": False,
    "loss/fake_score": False,
    "norm/student_update": False,
    "held_out/frechet": False,
    "held_out/spread": True,
    "collapse/sharpness": True,
}


def main(folder: Path) -> None:
    matplotlib.use("agg")
    figure, axes = pyplot.subplots(2, 3, figsize=(10, 5.6), dpi=100, layout="constrained")
    for number, (student, title) in enumerate(STUDENTS.items()):
        log = metrics.read(folder / "collapse" / "0" / student)
        for axis, name in zip(axes.flat, CURVES, strict=True):
            points = [(line["step"] + 1, line[name]) for line in log if line.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=title, color=f"C{number}", linewidth=1.4)
    for axis, (name, relative) in zip(axes.flat, CURVES.items(), strict=True):
        axis.set_title(f"{name} (data: 1)" if relative else name, fontsize=10)
        axis.set_yscale("linear" if relative else "log")
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("updates", fontsize=9)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(Path(__file__).with_name("curves.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
