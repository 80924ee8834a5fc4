"""A text-to-video model, read from its folder: it turns captions and noise into latents and videos."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from dollar_jax import checkpoint, diffusion, sampling, unipc
from dollar_jax.card import COMPONENTS, SAMPLED, Card, require
from dollar_jax.data.text import load_tokenizer, tokenize
from dollar_jax.diffusion import Points, Schedule
from dollar_jax.errors import UserError
from dollar_jax.models import independent_chunks, roles
from dollar_jax.models.flow_map import is_flow_map
from dollar_jax.models.network import Network, parameter_shapes
from dollar_jax.models.tiling import in_tiles
from dollar_jax.reading import inside
from dollar_jax.sharding import BATCH, constrain, even_batch, one_by_one
from dollar_jax.solvers import SOLVERS
from dollar_jax.types import Condition, Params

SMALL = 2**18  # pixels of a video; smaller ones are decoded in one call, which is quicker

Frames = UInt8[np.ndarray, "n F H W 3"]
Latents = Float[np.ndarray, "n f h w c"]


@dataclass(frozen=True)
class Pipeline:
    """The networks of a card, and their use: encode text, encode and decode videos, sample.

    Arguments and results are NumPy arrays, if not said otherwise.

    Attributes:
      card: see `dollar_jax.card`.
      networks: component -> (network, parameters); the parameters are None if each call gets them as an argument.
      tokenizer: a Hugging Face tokenizer.
      tiled: whether the VAE computes in tiles, see `dollar_jax.models.tiling`.
    """

    card: Card
    networks: dict[str, tuple[Network, Params | None]]
    tokenizer: Any
    tiled: bool = False

    @cached_property
    def schedule(self) -> Schedule:
        return diffusion.make_schedule(**self.card["schedule"])

    @cached_property
    def _autoencoder(self) -> tuple[Callable, Callable]:
        network, _ = self.networks["vae"]
        encode, decode = _autoencoder(self.card, in_tiles(network) if self.tiled else network)
        size = self.card["video"]
        large = size["frames"] * size["height"] * size["width"] > SMALL

        def to_frames(params, latents):
            def run(x):
                return to_uint8((decode(params, x) + 1) / 2)

            return one_by_one(run, latents) if large else run(constrain(latents, BATCH))

        return _shared(lambda params, video: encode(params, video)[0]), jax.jit(to_frames)

    @cached_property
    def _encode_text(self):
        return _shared(self.networks["text_encoder"][0].apply)

    def encode_text(self, captions: Sequence[str]) -> Condition:
        """Encodes n captions to their condition, a tree of arrays [n, ...]."""
        part = self.card["tokenizer"]
        tokens, mask = tokenize(self.tokenizer, captions, part["length"], part.get("clean", False))
        return jax.tree.map(np.asarray, self._encode_text(self.networks["text_encoder"][1], tokens, mask))

    @cached_property
    def negative(self) -> Condition:
        """The condition (b = 1) of the card's negative prompt, from which guidance moves away."""
        return self.encode_text([self.card["negative_prompt"]])

    def encode_mean(self, video: Frames) -> Latents:
        """Encodes videos to the mean of the VAE's posterior, not normalised."""
        return np.asarray(self._autoencoder[0](self.networks["vae"][1], video / np.float32(127.5) - 1))

    def encode_video(self, video: Frames) -> Latents:
        """Encodes videos to the mean of the VAE's posterior, normalised to about unit variance."""
        return normalize(self.card["vae"], self.encode_mean(video))

    def decode(self, latents: Latents) -> Frames:
        """Decodes normalised latents to videos; the card's `lead` latents at the start of a video are dropped.

        Large videos are decoded one by one on a device.
        """
        return np.asarray(jax.jit(constrain)(self.decode_on_devices(latents)))

    def decode_on_devices(self, latents: jax.Array | Latents) -> jax.Array:
        """Like `decode`, to a JAX array: under a mesh each device keeps the videos of its part of the batch."""
        latents = latents[:, -(self.card["latent_shape"][0] - self.card.get("lead", 0)) :]
        return self._autoencoder[1](self.networks["vae"][1], restore(self.card["vae"], latents))

    def decoder(self, params: Params, latents: Array) -> Array:
        """Decodes normalised latents to videos in 0..1, traceable and differentiable; `params` are the VAE's."""
        _, decode = _autoencoder(self.card, self.networks["vae"][0])
        latents = latents[:, -(self.card["latent_shape"][0] - self.card.get("lead", 0)) :]
        return jnp.clip((decode(params, restore(self.card["vae"], latents)) + 1) / 2, 0, 1)

    @property
    def guidance(self) -> sampling.Guidance:
        """The card's guidance."""
        if low := self.card.get("low_guidance"):
            return self.card["guidance"], low["guidance"], low["below"]
        return self.card["guidance"]

    def times(self, steps: int | None) -> Points:
        """The times for sampling with this number of steps, ascending; None: the card's own times.

        A teacher or a flow map takes any number of steps, spaced over its schedule. Another student takes every second,
        third, .. of its own times, beginning with the noisiest.

        Raises:
          UserError: the number of steps does not divide the student's own number.
        """
        own = tuple(sorted(self.card["times"]))
        if steps is None or steps == len(own):
            return own
        if self._takes_any:
            return self.schedule.spaced(steps)
        if not self.takes(steps):
            raise UserError(
                f"--steps={steps}: this student has {len(own)} steps, at the times {own}; give a divisor of {len(own)}"
            )
        return own[::-1][:: len(own) // steps][::-1]

    def takes(self, steps: int) -> bool:
        """Whether the model can be sampled in this number of steps, see `times`."""
        return self._takes_any or len(self.card["times"]) % steps == 0

    @property
    def _takes_any(self) -> bool:
        return self.card["role"] != "student" or is_flow_map(self.card["transformer"]["config"])

    @cached_property
    def sampler(self):
        """Jitted (params, noise, condition, negative, keys, times, guidance) -> latents; the last two are static.

        Under a mesh the devices share the batch, and each device holds the whole result.
        """
        network = self.networks["transformer"][0]

        def run(params, noise, condition, negative, keys, times, guidance):
            denoise = sampling.denoiser(
                network.apply,
                params,
                self.card["prediction_type"],
                self.schedule,
                negative,
                guidance,
                is_flow_map(self.card["transformer"]["config"]),
            )
            noise, condition, keys = jax.tree.map(lambda x: constrain(x, BATCH), (noise, condition, keys))
            where, sampler = (denoise, noise, condition, times, self.schedule), self.card["sampler"]
            latents = (
                unipc.sample(*where, sampler) if sampler in unipc.ORDER else sampling.sample(*where, sampler, keys)
            )
            return constrain(latents)

        return jax.jit(run, static_argnames=("times", "guidance"))

    def videos(
        self,
        condition: Condition,
        noise: Latents,
        keys: jax.Array,
        *,
        steps: int | None = None,
        guidance: sampling.Guidance | None = None,
        negative: Condition | None = None,
        params: Params | None = None,
        batch_size: int = 16,
    ) -> Iterator[tuple[Latents, Frames]]:
        """Samples videos in batches, and yields latents and videos of each batch; the last batch may be shorter.

        Args:
          condition: condition of the captions, one row per video.
          noise: initial noise of each video.
          keys: [n], for samplers that draw more noise.
          steps: number of steps; None: the card's.
          guidance: the paper's w (diffusers' scale is w + 1); None: the card's.
          negative: the condition (b = 1) that guidance moves away from; None: the card's.
          params: parameters of the transformer; None: the pipeline's.
          batch_size: number of videos in a batch; the devices of a mesh share as many or some more, see `even_batch`.
        """
        batch_size = even_batch(batch_size)
        guidance = self.guidance if guidance is None else guidance
        if negative is None and guidance:
            negative = self.negative
        params = self.networks["transformer"][1] if params is None else params
        times = self.times(steps)
        for start in range(0, len(noise), batch_size):
            x_t, told, row_keys = padded_rows((noise, condition, keys), start, batch_size)
            latents = np.asarray(self.sampler(params, x_t, told, negative, row_keys, times, guidance))
            count = min(batch_size, len(noise) - start)
            yield latents[:count], self.decode(latents)[:count]


def _autoencoder(card: Card, network: Network) -> tuple[Callable, Callable]:
    """encode(params, video) -> (mean, log variance) and decode(params, latents) -> video, in the card's chunk mode."""
    if chunk := card["video"]["independent_chunk"]:
        latent_chunk = card["latent_shape"][0] * chunk // card["video"]["frames"]
        encode = partial(independent_chunks.encode, network, chunk=chunk)
        return encode, partial(independent_chunks.decode, network, chunk=latent_chunk)
    return partial(network.apply, method="encode"), partial(network.apply, method="decode")


def at_size(card: Card, video: Mapping[str, Any]) -> Card:
    """The card with the same networks and another size of videos.

    Args:
      video: {frames, height, width, fps, independent_chunk}.

    Raises:
      UserError: the VAE does not take this size.
    """
    part = card["vae"]
    network = checkpoint.network_of(part)
    card = card | {"video": dict(video), "latent_shape": [video["frames"], 0, 0, 0]}
    clip = jax.ShapeDtypeStruct((1, video["frames"], video["height"], video["width"], 3), jnp.float32)
    params = parameter_shapes(network)
    mean, _ = jax.eval_shape(_autoencoder(card, network)[0], params, clip)
    return {name: value for name, value in card.items() if name != "lead"} | {"latent_shape": list(mean.shape[1:])}


def with_solver(card: Card, solver: str | None, shift: float | None) -> Card:
    """The card with another solver of `SOLVERS` or another shift of its flow; None: the card's. Its times follow.

    Raises:
      UserError: a flow's solver or a shift for a schedule that is no flow; either for a student, whose times are fixed.
    """
    sampler, spacing = SOLVERS[solver] if solver else (card["sampler"], None)
    changes = {name: value for name, value in (("spacing", spacing), ("shift", shift)) if value is not None}
    if not changes:
        return card | {"sampler": sampler}
    flag = f"--shift={shift:g}" if spacing is None else f"--sampler={solver}"
    if card["role"] == "student":
        raise UserError(f"{flag}: this student was trained for its own times; distil it again for others")
    if card["schedule"]["kind"] != "flow":
        raise UserError(f"{flag} is for a flow: the schedule of this checkpoint is {card['schedule']['kind']}")
    if shift is not None and not shift > 0:
        raise UserError(f"{flag}: a shift is above 0; 1 shifts nothing")
    schedule = card["schedule"] | changes
    times = diffusion.make_schedule(**schedule).spaced(len(card["times"]))
    return card | {"sampler": sampler, "schedule": schedule, "times": list(times)}


def padded_rows(tree: Any, start: int, count: int) -> Any:
    """Rows start .. start + count of every array, with the last row repeated past the end: one shape to compile."""
    return jax.tree.map(lambda rows: rows[np.minimum(np.arange(start, start + count), len(rows) - 1)], tree)


def normalize(vae: Mapping[str, Any], latents: Array | np.ndarray) -> Array | np.ndarray:
    """Normalises the VAE's latents to about unit variance: (z - shift) scale, both one number or one per channel."""
    return (latents - _factor(vae.get("shift_factor", 0.0))) * _factor(vae["scaling_factor"])


def restore(vae: Mapping[str, Any], latents: Array | np.ndarray) -> Array | np.ndarray:
    """The inverse of `normalize`."""
    return latents / _factor(vae["scaling_factor"]) + _factor(vae.get("shift_factor", 0.0))


def _factor(value: float | list[float]) -> np.ndarray:
    factor = np.asarray(value, np.float32)
    return factor.reshape(1, 1, 1, 1, -1) if factor.ndim else factor


def to_uint8(video: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array, "*shape"]:
    """Converts pixels in 0..1 to uint8, clipped."""
    return jnp.round(jnp.clip(video, 0, 1) * 255).astype(jnp.uint8)


def _shared(function: Callable) -> Callable:
    """Jits (params, *batch): under a mesh the devices share the batch, and each device holds the whole result."""

    def run(params, *batch):
        result = function(params, *(constrain(rows, BATCH) for rows in batch))
        return jax.tree.map(constrain, result)

    return jax.jit(run)


def draw_noise(card: Card, seed: int, prompts: int, videos: int) -> tuple[Latents, jax.Array]:
    """Noise [prompts * videos, f h w c] and keys [prompts * videos], ordered by prompt.

    The noise of a video depends only on the seed, the number of its prompt and its own number, not on how many prompts
    and videos there are.
    """
    return noise_at(card, seed, *(numbers.ravel() for numbers in jnp.indices((prompts, videos))))


def noise_at(card: Card, seed: int, prompt: Int[Array, " n"], video: Int[Array, " n"]) -> tuple[Latents, jax.Array]:
    """Noise [n f h w c] and keys [n] of the videos with these numbers of prompt and video, see `draw_noise`."""
    fold = jax.vmap(jax.random.fold_in)
    keys = fold(fold(jnp.broadcast_to(jax.random.key(seed), prompt.shape), prompt), video)
    return np.asarray(sampling.normal(keys, card["latent_shape"])), sampling.fold(keys, 1)


def load(
    folder: str | os.PathLike,
    parts: Sequence[str] = COMPONENTS,
    tiled: bool = False,
    lora_scale: float | None = None,
    bases: Mapping[str, Params] = MappingProxyType({}),
    **options,
) -> Pipeline:
    """Reads a model's folder, or one numbered checkpoint in it.

    Args:
      lora_scale: strength of the transformer's adapter: 0 is its base alone; None: 1, also for one without adapter.
      bases: see `checkpoint.load_component`.
      **options: options of the transformer: dtype, remat, attention. A text encoder of this package gets the dtype too;
        both keep their large matrices in it (`models.network.narrowed`). The VAE computes in float32.
    Raises:
      UserError: a part of the model is missing, damaged or does not fit its card; there is no adapter to scale.
    """
    card = checkpoint.read_card(folder)
    require(card, [*parts, *(SAMPLED if "transformer" in parts else ())], folder)
    if "text_encoder" in parts:
        require(card, ("tokenizer",), folder)
    if lora_scale is not None and "lora" not in card["transformer"]:
        raise UserError(f"--lora_scale={lora_scale:g}: {folder} has all weights of its own, no adapter")
    strength = 1.0 if lora_scale is None else lora_scale
    networks = {}
    for part in parts:
        own = _options(part, card[part], options)
        networks[part] = checkpoint.load_component(folder, card[part], strength, bases, own.get("dtype"), **own)
    _require_roles(card, networks)
    tokenizer = None
    if "text_encoder" in parts:
        tokenizer = load_tokenizer(inside(checkpoint.root(folder), card["tokenizer"]["path"]))
    return Pipeline(card, networks, tokenizer, tiled)


def usual_dtype() -> str:
    """The dtype for sampling: bfloat16 on GPUs and TPUs, whose fast attention needs it, float32 on CPUs."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _options(name: str, part: Card, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the transformer's options that this component takes: its role has them, see `models.roles`."""
    if name == "transformer":
        return dict(options)
    takes = name == "text_encoder" and ":" not in part["architecture"] and "dtype" in options
    return {"dtype": options["dtype"]} if takes else {}


def _require_roles(card: Card, networks: Mapping[str, tuple[Network, Params]]) -> None:
    """Raises UserError if a network from outside breaks the contract of its role."""
    shape = jax.ShapeDtypeStruct
    tokens = (1, card["tokenizer"]["length"]) if "text_encoder" in networks else ()
    words = shape(tokens, jnp.int32), shape(tokens, bool)
    for part, (network, params) in networks.items():
        name = card[part]["architecture"]
        if ":" not in name:
            continue
        match part:
            case "vae":
                size = card["video"]
                frames = size["independent_chunk"] or size["frames"]
                examples = (shape((1, frames, size["height"], size["width"], 3), jnp.float32),)
            case "text_encoder":
                examples = words
            case "transformer" if "text_encoder" in networks:
                encoder, its_params = networks["text_encoder"]
                condition = jax.eval_shape(encoder.apply, its_params, *words)
                examples = shape((1, *card["latent_shape"]), jnp.float32), condition
            case _:
                continue  # without a text encoder its condition is unknown here: `stages.common.open_view` checks it
        role = "flow_map" if part == "transformer" and is_flow_map(card[part]["config"]) else part
        roles.require(role, network, name, *examples, params=params)
