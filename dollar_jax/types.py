"""The table of symbols, and the types that signatures share.

| symbol | name in the code | meaning | equation |
|---|---|---|---|
| x0 | `x0`, `latents` | clean latents, [b f h w c] | |
| eps | `eps` | standard Gaussian noise | 1 |
| a_t, b_t | `signal`, `noise` | x_t = a_t x0 + b_t eps; DDPM: sqrt(abar_t), sqrt(1 - abar_t) | 1 |
| t | `times` | the time as the network is given it, see `diffusion.Schedule` | |
| v | `prediction` | the network's output, of a prediction type: conjugate, v, eps, flow or x0 | 3, 4 |
| c | `condition` | the caption's embedding and mask, and further arrays of a family | |
| theta' | `teacher` | the frozen pretrained network | |
| theta | `student` | the few-step generator G | |
| theta_fake | `fake_score` | the diffusion model of the student's samples | 12 |
| phi | `reward_model` | the latent reward model | 14 |
| w | `guidance` | v + w (v - v_null): 0 is no guidance (diffusers' scale is w + 1) | 9 |
| s | `score` | grad log p_t(x_t) | 13 |
"""

from collections.abc import Mapping
from typing import Any

from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

Params = Mapping[str, Any]  # a network's parameters: nested dict of arrays

Latent = Float[Array, "b f h w c"]  # latent videos, normalised to about unit variance
Video = Float[Array, "b F H W 3"]  # pixel videos; the docstring says whether -1..1 or 0..1
Text = Float[Array, "b l d"]  # text embeddings
Tokens = Int[Array, "b l"]  # token ids
Times = Float[Array, " b"]  # diffusion times, in the units of the schedule
PerExample = Float[Array, " b"]
Key = PRNGKeyArray
Leaf = Any  # of a pytree: an array, or what a tree map puts in its place (a shape, a sharding)


@struct.dataclass
class Condition:
    """What a network is told beside x_t and its time: a pytree whose arrays share their first axis.

    Attributes:
      embedding: the text encoder's embeddings, [b l d].
      mask: True where a token is real, [b l].
      extra: a dict of further arrays of a family by name, [b ...]: a second encoder's pooled embedding, for example.
    """

    embedding: Leaf
    mask: Leaf
    extra: Leaf = struct.field(default_factory=dict)
