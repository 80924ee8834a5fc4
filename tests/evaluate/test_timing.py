import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_pipeline

from dollar_jax.evaluate import timing
from dollar_jax.models.network import Network
from dollar_jax.pipeline import draw_noise


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def sampler(self, log, name, seconds):
        seconds = iter(seconds)

        def sample():
            log.append(name)
            self.now += next(seconds)
            return jnp.zeros(1)

        return sample


def test_samplers_take_turns_after_a_warm_up_and_seconds_are_for_one_video(monkeypatch):
    clock, log = Clock(monkeypatch), []
    samplers = {
        "teacher": clock.sampler(log, "teacher", [90, 8, 10, 30]),
        "student": clock.sampler(log, "student", [50, 1, 2, 3]),
    }
    times = timing.time_in_turns(samplers, videos=2, repeats=3)
    assert log == ["teacher", "student"] * 4
    assert times["teacher"] == timing.Timing(median=5, mean=8, std=pytest.approx(np.std([4, 5, 15])))
    assert times["student"].median == 1


@pytest.mark.parametrize(("seconds", "counted"), [(1, 5), (20, 4), (90, 1)])
def test_what_takes_long_is_repeated_less(monkeypatch, seconds, counted):
    """At most five times; at least once, and then for a minute."""
    clock, log = Clock(monkeypatch), []
    timed = timing.time_warm(clock.sampler(log, "teacher", [seconds] * counted), videos=2, repeats=5)
    assert len(log) == counted
    assert timed == timing.Timing(median=seconds / 2, mean=seconds / 2, std=0)


def test_what_has_made_videos_is_not_compiled_again():
    model, traced = toy_pipeline.make(), []
    network, params = model.networks["transformer"]

    def apply(*inputs):
        traced.append(inputs)
        return network.apply(*inputs)

    model.networks["transformer"] = Network(network.init, apply), params
    told, (noise, keys) = model.encode_text(["a cat", "a dog"]), draw_noise(model.card, 0, 2, 1)
    list(model.videos(told, noise, keys, steps=1, guidance=2.0, batch_size=2))
    before = len(traced)
    assert before
    timing.Sampling(model, 1, 2.0).diffusion(told, model.negative, noise, keys)()
    assert len(traced) == before


def test_the_work_is_waited_for():
    # Without a barrier the call returns at once: it is launched from another thread here.
    matrix = jnp.ones((1000, 1000))
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda i, y: y @ x / 1000, x))
    waited = []
    times = timing.time_in_turns({"work": lambda: waited.append(work(matrix)) or waited[-1]}, videos=1, repeats=2)
    assert all(array.is_ready() for array in waited)
    assert times["work"].median > 1e-3


def test_speed_up_and_its_bound():
    teacher = {"calls": 100, "diffusion_seconds_per_video": 2.0}
    assert timing.speed_up(teacher, {"calls": 4, "diffusion_seconds_per_video": 0.1}) == (20, 25)
    assert timing.speed_up(teacher, {"calls": 2}) == (None, 50)


def test_guidance_doubles_the_calls():
    assert timing.Sampling(None, 50, guidance=7.5).calls == 100
    assert timing.Sampling(None, 4, guidance=0.0).calls == 4
