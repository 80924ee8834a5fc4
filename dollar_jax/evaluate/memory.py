"""Memory for tuning with a reward: latent reward models beside a reward on pixels (Tab. 1 and Tab. 10).

The programs are compiled for one video of the paper's size and never run; parameters are abstract.

  forward     R(x)
  backward    R(x) and its gradient in x, with frozen parameters, as in Eq. 15

x is the latents of a latent reward model, or the frames for CLIP-H. As in the paper, the frames and the text embedding
are given: text tower and decoder are not counted. With the decoder x is the latents; CogVideoX's decoder turns 5 latent
frames into 16 frames at a time. The memory of a gradient depends on the activations:

  kept          all activations are kept; CLIP-H sees all frames in one batch, as in the paper
  recomputed    a loop recomputes the activations of one frame, or of one chunk of the decoder, for the gradient
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.stages import Compiled
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from dollar_jax.columns import aligned
from dollar_jax.compiling import OPTIONS, announced
from dollar_jax.models import clip, cogvideox_vae, independent_chunks, latent_reward
from dollar_jax.models.network import Network, count_parameters, parameter_shapes
from dollar_jax.rewards.clip import letterboxed
from dollar_jax.sharding import AXES, make_mesh, replicated
from dollar_jax.types import Params

FRAMES, HEIGHT, WIDTH = 128, 192, 320
LATENT_FRAMES, *LATENT = 40, 24, 40, 12  # f, h w c of the latents of these videos
CHUNK = 5  # latent frames in a call of the decoder
TEXT = (256, 4096)  # tokens and width of the text embeddings for the text-image model
CLIP_H = {
    "projection_dim": 1024,
    "vision_config": {
        **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16},
        **{"hidden_act": "gelu", "image_size": 224, "patch_size": 14},
    },
    "text_config": {
        **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        **{"hidden_act": "gelu"},
    },
}
IMAGE, TEXT_IMAGE, PIXELS, DECODED = "image LRM", "text-image LRM", "CLIP-H", "decoder + CLIP-H"
KEPT, RECOMPUTED = "kept", "recomputed"
# The paper's values: Tab. 1 for all frames, Tab. 10 for fewer.
PAPER = {
    (IMAGE, 128): {"parameters": "189,441", "forward": "8.998 MB", "backward": "17.772 MB"},
    (TEXT_IMAGE, 128): {"parameters": "763,009", "forward": "15.500 MB", "backward": "26.277 MB"},
    (PIXELS, 12): {"backward": "12.373 GB"},
    (PIXELS, 24): {"backward": "20.577 GB"},
    (PIXELS, 64): {"backward": "48.413 GB"},
    (PIXELS, 128): {"parameters": "632 million", "forward": "5.926 GB", "backward": ">90 GB"},
}


class Reward(NamedTuple):
    """A reward of one video.

    Attributes:
      name: kind of the reward.
      frames: number of frames that it reads.
      activations: `KEPT` or `RECOMPUTED`.
      parameters: number of parameters that it uses.
      score: (params, x, *given) -> reward.
      arguments: ShapeDtypeStructs of the arguments of `score`.
    """

    name: str
    frames: int
    activations: str
    parameters: int
    score: Callable[..., Float[Array, ""]]
    arguments: tuple


def latent_rewards() -> Iterator[Reward]:
    """Yields the latent reward models of Tab. 12 and Tab. 13, averaged over the latent frames, in float32."""
    for name, width, given in ((IMAGE, None, ()), (TEXT_IMAGE, TEXT[1], (_shape(1, *TEXT),))):
        network = latent_reward.build(channels=LATENT[-1], text_width=width)
        params = _params(network)
        arguments = params, _shape(1, LATENT_FRAMES, *LATENT), *given
        yield Reward(name, FRAMES, KEPT, count_parameters(params), _mean(network), arguments)


def pixel_rewards(frames: Sequence[int], dtype: str, config: dict = CLIP_H) -> Iterator[Reward]:
    """Yields HPSv2's score, cos(image, text) of a CLIP, averaged over each of these numbers of frames."""
    network = clip.build(dtype=dtype, **config)
    params, text = _params(network, dtype), _shape(config["projection_dim"])
    size = config["vision_config"]["image_size"]

    def part(params, frames, text):
        return clip_score(network, params, frames, text, size)

    for activations in (KEPT, RECOMPUTED):
        for count in frames:
            parts = (1, count) if activations == KEPT else (count, 1)
            arguments = params, _shape(*parts, HEIGHT, WIDTH, 3), text
            parameters = count_parameters(params["vision"])
            yield Reward(PIXELS, count, activations, parameters, over_parts(part, activations), arguments)


def decoded_rewards(dtype: str, config: dict = CLIP_H, vae: dict | None = None) -> Iterator[Reward]:
    """Yields HPSv2's score of all frames, decoded from latents; `vae` are fields of `cogvideox_vae.build`."""
    networks = {
        "vae": cogvideox_vae.build(dtype=dtype, latent_channels=LATENT[-1], **(vae or {})),
        "clip": clip.build(dtype=dtype, **config),
    }
    params = {name: _params(network, dtype) for name, network in networks.items()}
    latents = _shape(LATENT_FRAMES // CHUNK, 1, CHUNK, *LATENT)

    def part(params, latents, text):
        (video,) = independent_chunks.decode(networks["vae"], params["vae"], latents, CHUNK)
        return clip_score(
            networks["clip"], params["clip"], (video + 1) / 2, text, config["vision_config"]["image_size"]
        )

    parameters = count_parameters(params["vae"]["decoder"]) + count_parameters(params["clip"]["vision"])
    for activations in (KEPT, RECOMPUTED):
        arguments = params, latents, _shape(config["projection_dim"])
        yield Reward(DECODED, FRAMES, activations, parameters, over_parts(part, activations), arguments)


def clip_score(
    network: Network, params: Params, frames: Float[Array, "n h w 3"], text: Float[Array, " e"], size: int
) -> Float[Array, " n"]:
    """cos(image, text) of frames with pixels in 0..1; `text` is an embedding of norm 1."""
    x = network.apply(params, letterboxed(frames, size), method="encode_image")
    return x @ text / jnp.linalg.norm(x, axis=-1)


def over_parts(part: Callable[..., Float[Array, " n"]], activations: str) -> Callable[..., Float[Array, ""]]:
    """Makes (params, parts, text) -> mean over i of part(params, parts[i], text), computed in a loop."""

    def score(params, parts, text):
        def one(x):
            return part(params, x, text)

        # The loop keeps the activations of all rounds; with a checkpoint it keeps only the inputs of a round.
        return lax.map(jax.checkpoint(one, prevent_cse=False) if activations == RECOMPUTED else one, parts).mean()

    return score


def measure(reward: Reward, device: jax.Device) -> dict[str, Any]:
    """A row for `table`: bytes of the forward and the backward program, compiled for one device."""
    backward = jax.value_and_grad(reward.score, argnums=1)
    row = {name: getattr(reward, name) for name in ("name", "frames", "activations", "parameters")}
    mesh = make_mesh(ConfigDict(dict.fromkeys(AXES, 1)), [device])
    with jax.set_mesh(mesh):
        arguments = jax.tree.map(lambda x: x.update(sharding=replicated(mesh)), reward.arguments)
        options = OPTIONS[device.platform]
        for direction, step in (("forward", reward.score), ("backward", backward)):
            with announced(f"{reward.name}, {reward.frames} frames, {reward.activations}, {direction}"):
                row[direction] = needed(jax.jit(step).lower(*arguments).compile(compiler_options=options))
    printed = PAPER.get((reward.name, reward.frames), {}) if reward.activations == KEPT else {}
    return row | {"paper": printed}


def needed(compiled: Compiled) -> int:
    """Peak bytes of arguments, results and temporaries; arguments that the program does not read are not counted."""
    memory = compiled.memory_analysis()
    outside = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return outside + memory.temp_size_in_bytes


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A text table of rows of `measure`, each value beside the paper's."""
    lines = [("reward", "activations", "frames", "parameters", "paper", "forward", "paper", "backward", "paper")]
    for row in rows:
        paper = row["paper"]
        numbers = {"parameters": f"{row['parameters']:,}"}
        numbers |= {direction: _bytes(row[direction]) for direction in ("forward", "backward")}
        pairs = [cell for name, number in numbers.items() for cell in (number, paper.get(name, ""))]
        lines.append((row["name"], row["activations"], str(row["frames"]), *pairs))
    return aligned(lines)


def _bytes(size: int) -> str:
    """Bytes with the paper's units and number of digits."""
    return f"{size / 1e9:.3f} GB" if size >= 1e9 else f"{size / 1e6:.3f} MB"


def _mean(network: Network) -> Callable[..., Float[Array, ""]]:
    return lambda params, latents, *text: network.apply(params, latents, *text).mean()


def _shape(*sides: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def _params(network: Network, dtype: str = "float32") -> Params:
    """ShapeDtypeStructs of the parameters, stored in `dtype`."""
    return jax.tree.map(lambda x: x.update(dtype=jnp.dtype(dtype)), parameter_shapes(network))
