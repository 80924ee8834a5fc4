"""The scheduler of a few-step student for stock diffusers pipelines, in PyTorch.

`python -m dollar_jax.convert to_torch` puts this file beside the student's scheduler_config.json where no stock
scheduler samples as it does; diffusers loads it with `trust_remote_code=True`.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor


class DollarScheduler(SchedulerMixin, ConfigMixin):
    """Reverse steps between the times that a student knows.

    x_t = a_t x0 + b_t eps; every step takes x0 and eps from the model's prediction and goes to the next time with them.

    Args:
      times: the model's, descending.
      signal, noise: a_t and b_t at these times.
      prediction_type: the model's: 'conjugate' (x0 - eps), 'flow' (eps - x0), 'v', 'eps' or 'x0'.
      sampler: 'ddim', 'ancestral' or 'renoise'; the last two draw new noise between steps.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        times: list[int] | list[float] = (999, 749, 499, 249),
        signal: list[float] = (),
        noise: list[float] = (),
        prediction_type: str = "conjugate",
        sampler: str = "ddim",
    ):
        self.set_timesteps(len(times))

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """All times, or for fewer steps every second, every third, .. from the noisiest on."""
        stride, rest = divmod(len(self.config.times), num_inference_steps)
        if rest or not stride:
            raise ValueError(f"this student takes {len(self.config.times)} steps, or as few as divide them")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(self.config.times[::stride], device=device)
        self.sigmas = torch.tensor([*self.config.noise[::stride], 0.0])

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Some pipelines count steps for their scheduler; `step` finds its place by the time."""

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        """The model takes x_t as it is."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """x at the next time from the model's prediction at `timestep`; after the last one it is x0."""
        place = self.timesteps.tolist().index(float(timestep))  # both are rounded to float32
        stride = len(self.config.times) // self.num_inference_steps
        signal, noise = [*self.config.signal[::stride], 1.0], [*self.config.noise[::stride], 0.0]
        (a, a_next), (b, b_next) = signal[place : place + 2], noise[place : place + 2]
        x0, eps = self._x0_eps(model_output, sample, a, b)
        sigma = {
            "ddim": 0.0,
            "ancestral": b_next / b * max(b**2 - (a / a_next * b_next) ** 2, 0.0) ** 0.5,
            "renoise": b_next,
        }[self.config.sampler]
        following = a_next * x0 + max(b_next**2 - sigma**2, 0.0) ** 0.5 * eps
        if sigma:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            following = following + sigma * noise
        return SchedulerOutput(following) if return_dict else (following,)

    def _x0_eps(self, v: torch.Tensor, x: torch.Tensor, a: float, b: float) -> tuple[torch.Tensor, torch.Tensor]:
        match self.config.prediction_type:
            case "conjugate":
                return (x + b * v) / (a + b), (x - a * v) / (a + b)
            case "flow":
                return (x - b * v) / (a + b), (x + a * v) / (a + b)
            case "v":
                square = a**2 + b**2
                return (a * x - b * v) / square, (b * x + a * v) / square
            case "eps":
                return (x - b * v) / a, v
            case "x0":
                return v, (x - a * v) / b
        raise ValueError(f"unknown prediction_type {self.config.prediction_type}")
