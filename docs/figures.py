"""python -m docs.figures: makes the animations of docs/explanation.md, vsd.gif, cd.gif and lrm.gif in docs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg

from docs import plane
from docs.plane import PREDICTION_TYPE, SCHEDULE, Points
from dollar_jax.pictures import gif
from dollar_jax.sampling import denoiser
from dollar_jax.steps.distillation import Distillation, DollarState

TEACHER_UPDATES, STUDENT_UPDATES, TUNING_UPDATES = 3000, 300, 60  # those of the notebook
FRAMES, FPS = 20, 5
BOTH = {"variational_score": 1.0, "consistency": 0.5}
FOLDER = Path(__file__).parent


def movie(setup: Distillation, states: Sequence[DollarState]) -> list[Points]:
    """Samples of the student at each of these states, from the same noise."""
    steps = len(setup.config.generator.times)
    return plane.draws(setup.denoiser, [state.ema for state in states], steps, count=500)


def animation(movies: Mapping[str, Sequence[Points]], ends: int, star: bool = False) -> bytes:
    """A GIF of movies side by side, whose last frame stays for two seconds.

    Args:
      movies: title -> points of each frame; the first frame is the start.
      ends: number of updates at the last frame.
      star: whether to mark the point with the best reward.
    """
    frames = []
    for index, panels in enumerate(zip(*movies.values(), strict=True)):
        figure, axes = pyplot.subplots(1, len(movies), figsize=(2.4 * len(movies), 3.1), dpi=80, layout="constrained")
        for axis, title, points in zip(axes, movies, panels, strict=True):
            plane.scatter(axis, points, title)
            if star:
                axis.plot(*plane.STAR, "*", color="tab:red", markersize=10)
        figure.supxlabel(f"{round(ends * index / (len(next(iter(movies.values()))) - 1))} updates", fontsize=10)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        pyplot.close(figure)
    return gif(np.stack([*frames, *[frames[-1]] * (2 * FPS)]), FPS)


def main() -> None:
    matplotlib.use("agg")
    network = plane.transformer()
    teacher = plane.pretrain(network, TEACHER_UPDATES)
    denoise = denoiser(network.apply, teacher, PREDICTION_TYPE, SCHEDULE)

    def student(objectives, steps, updates, start=None):
        """The setup of a distillation, and its states."""
        setup = plane.recipe(network, objectives, steps, updates)
        return setup, plane.distill(setup, teacher, start, snapshots=FRAMES)

    for file, objective in ("vsd.gif", "variational_score"), ("cd.gif", "consistency"):
        movies = {}
        for steps, words in (4, "4 steps"), (1, "1 step"):
            start = plane.draw(denoise, steps, count=500)
            movies[f"student in {words}"] = [start, *movie(*student({objective: 1.0}, steps, STUDENT_UPDATES))]
        (FOLDER / file).write_bytes(animation(movies, STUDENT_UPDATES))

    before, states = student(BOTH, 4, STUDENT_UPDATES)
    movies = {}
    for words, others in ("reward alone", {}), ("reward, VSD and CD", BOTH):
        objectives = others | {"latent_reward": {"weight": 0.3, "units": "deviations"}}
        tuned = student(objectives, 4, TUNING_UPDATES, states[-1])
        movies[words] = [*movie(before, states[-1:]), *movie(*tuned)]
    (FOLDER / "lrm.gif").write_bytes(animation(movies, TUNING_UPDATES, star=True))


if __name__ == "__main__":
    main()
