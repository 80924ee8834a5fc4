"""The steps of VSD in PyTorch with diffusers' networks: a peer for those of `dollar_jax.steps`.

The method is that of DMD2 (arXiv 2405.14867): the student's input is simulated, a fake score follows the student, and
the gradient is normalised as in DMD. All random numbers are given, so that losses and updates can be compared.
"""

import copy
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
import stock
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel, WanTransformer3DModel
from einops import rearrange
from ml_collections import ConfigDict
from torch.nn.functional import mse_loss

from dollar_jax.convert import cogvideox_dit, wan_dit

NAMES = "teacher", "student", "fake_score"


@dataclass(frozen=True)
class Family:
    """A kind of transformer: diffusers' class, its list of blocks, its layout of videos; our network and keys; and the
    prediction type and schedule of its public weights.
    """

    network: type
    blocks: str
    layout: str
    architecture: str
    keys: ModuleType
    prediction_type: str
    schedule: dict


FAMILIES = {
    "cogvideox": Family(
        network=CogVideoXTransformer3DModel,
        blocks="transformer_blocks",
        layout="b f c h w",
        architecture="cogvideox_dit",
        keys=cogvideox_dit,
        prediction_type="v",
        schedule={"kind": "ddpm", "snr_shift": 3.0},
    ),
    "wan": Family(
        network=WanTransformer3DModel,
        blocks="blocks",
        layout="b c f h w",
        architecture="wan_dit",
        keys=wan_dit,
        prediction_type="flow",
        schedule={"kind": "flow", "shift": 5.0},
    ),
}


class Draws(NamedTuple):
    """The random numbers of one update for b examples; videos are [b f h w c].

    noise: the start of the simulation. again: the noise of its n - 1 steps. index: [b], the student's time at which an
    example is generated, of its n times in descending order. times [b], eps: the noise that is added to the sample.
    """

    noise: np.ndarray
    again: np.ndarray
    index: np.ndarray
    times: np.ndarray
    eps: np.ndarray


def random_networks(family: Family, sizes: dict, scale: float) -> dict[str, torch.nn.Module]:
    """Teacher, student and fake score with different random weights."""
    torch.manual_seed(0)
    return {name: stock.randomize(family.network(**sizes), scale) for name in NAMES}


class Peer:
    """Student, its average, teacher and fake score, with an update of the student and one of the fake score.

    Attributes:
      networks: name -> network of diffusers; `ema` is the student's average.
      optimizers: AdamW of 'student' and 'fake_score'.
      step: number of updates of the student.
    """

    def __init__(self, family: Family, networks: dict[str, torch.nn.Module], config: ConfigDict):
        """Takes over the networks of `random_networks`; `config` has the fields `generator` and `fake_score`."""
        self.family, self.config, self.step = family, config.generator, 0
        self.networks = networks | {"ema": copy.deepcopy(networks["student"])}
        self.settings = {"student": config.generator.optimizer, "fake_score": config.fake_score.optimizer}
        self.optimizers = {
            name: torch.optim.AdamW(
                self.networks[name].requires_grad_(True).parameters(),
                settings.learning_rate,
                (settings.b1, settings.b2),
                weight_decay=settings.weight_decay,
                fused=True,
            )
            for name, settings in self.settings.items()
        }
        self.signal = CogVideoXDDIMScheduler(**stock.SCHEDULER).alphas_cumprod.sqrt().float()

    def generator(self, text: torch.Tensor, draws: Draws) -> float:
        """Updates the student by VSD, and its average. Returns the loss.

        Args:
          text: embeddings [b l d]; guidance leads away from zeros.
        """
        options = self.config.objectives["variational_score"]
        x = self._generate(text, draws)
        with torch.no_grad():
            x_t, times = self._noised(x, draws)
            real = self._x0("teacher", x_t, times, text, options.guidance)
            fake = self._x0("fake_score", x_t, times, text)
            scale = (x - real).abs().mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
            target = x - (fake - real) / scale
        loss = mse_loss(x, target) / 2
        self._descend("student", loss)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        average, student = (list(self.networks[name].parameters()) for name in ("ema", "student"))
        with torch.no_grad():
            torch._foreach_lerp_(average, student, 1 - decay)
        self.step += 1
        return loss.item()

    def fake_score(self, text: torch.Tensor, draws: Draws) -> float:
        """Updates the fake score by the diffusion loss on samples of the student. Returns the loss."""
        with torch.no_grad():
            x = self._generate(text, draws)
            x_t, times = self._noised(x, draws)
            a, b = self._levels(times)
            eps = self._laid_out(draws.eps)
            target = a * eps - b * x if self.family.prediction_type == "v" else eps - x
        loss = mse_loss(self._predict("fake_score", x_t, times, text), target)
        self._descend("fake_score", loss)
        return loss.item()

    def _generate(self, text: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The student's x0 at one of its times; only that call has a gradient."""
        times = torch.tensor(sorted(self.config.times, reverse=True), dtype=torch.float32)
        x = self._laid_out(draws.noise)
        visited = [x]
        with torch.no_grad():
            for here, there, again in zip(times[:-1], times[1:], draws.again, strict=True):
                a, b = self._levels(there[None])
                x = a * self._x0("student", x, here.expand(len(x)), text) + b * self._laid_out(again)
                visited.append(x)
        index = torch.tensor(draws.index)
        return self._x0("student", torch.stack(visited)[index, torch.arange(len(x))], times[index], text)

    def _noised(self, x: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        times = torch.tensor(draws.times)
        a, b = self._levels(times)
        return a * x + b * self._laid_out(draws.eps), times

    def _x0(
        self, name: str, x: torch.Tensor, times: torch.Tensor, text: torch.Tensor, guidance: float = 0.0
    ) -> torch.Tensor:
        if guidance:
            both = self._predict(name, x.repeat(2, 1, 1, 1, 1), times.repeat(2), torch.cat([text, 0 * text]))
            given, without = both.chunk(2)
            prediction = given + guidance * (given - without)
        else:
            prediction = self._predict(name, x, times, text)
        a, b = self._levels(times)
        return (a * x if self.family.prediction_type == "v" else x) - b * prediction

    def _predict(self, name: str, x: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.networks[name](hidden_states=x, timestep=times, encoder_hidden_states=text, return_dict=False)[0]

    def _levels(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal a and noise b, [b 1 1 1 1]: those of diffusers' scheduler, or of a flow."""
        if self.family.prediction_type == "v":
            a = self.signal[times.long()]
            b = (1 - a**2).sqrt()
        else:
            b = times / 1000
            a = 1 - b
        return a.view(-1, 1, 1, 1, 1), b.view(-1, 1, 1, 1, 1)

    def _laid_out(self, video: np.ndarray) -> torch.Tensor:
        return torch.tensor(rearrange(video, f"b f h w c -> {self.family.layout}"))

    def _descend(self, name: str, loss: torch.Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.networks[name].parameters(), self.settings[name].clip)
        optimizer.step()
