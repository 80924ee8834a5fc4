"""A text-to-video model read from its folder: captions and noise in, latents and videos out."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from dollar_jax import checkpoint, diffusion, sampling
from dollar_jax.card import COMPONENTS, SAMPLED, Card, require
from dollar_jax.data.text import load_tokenizer, tokenize
from dollar_jax.diffusion import Points, Schedule
from dollar_jax.errors import UserError
from dollar_jax.models import build, independent_chunks, roles
from dollar_jax.models.network import Network
from dollar_jax.models.tiling import in_tiles
from dollar_jax.reading import inside
from dollar_jax.sharding import BATCH, constrain
from dollar_jax.types import Condition, Params

Frames = UInt8[np.ndarray, "n F H W 3"]
Latents = Float[np.ndarray, "n f h w c"]


@dataclass(frozen=True)
class Pipeline:
    """The networks of a card, and what one does with them. Arrays in and out are NumPy's; work is done in batches.

    Attributes:
      card: see `dollar_jax.card`.
      networks: (network, parameters) by component; no parameters where each call brings its own.
      tokenizer: a Hugging Face tokenizer.
      tiled: whether the VAE works in tiles, see `dollar_jax.models.tiling`.
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
        return _shared(lambda params, video: encode(params, video)[0]), jax.jit(
            lambda params, latents: to_uint8((decode(params, constrain(latents, BATCH)) + 1) / 2)
        )

    @cached_property
    def _encode_text(self):
        return _shared(self.networks["text_encoder"][0].apply)

    def encode_text(self, captions: Sequence[str]) -> Condition:
        """The captions' condition, NumPy arrays of n rows."""
        tokens, mask = tokenize(self.tokenizer, list(captions), self.card["tokenizer"]["length"])
        return jax.tree.map(np.asarray, self._encode_text(self.networks["text_encoder"][1], tokens, mask))

    @cached_property
    def negative(self) -> Condition:
        """The condition (b = 1) of the card's negative prompt: what guidance moves away from."""
        return self.encode_text([self.card["negative_prompt"]])

    def encode_mean(self, video: Frames) -> Latents:
        """The posterior mean, as the VAE has it."""
        return np.asarray(self._autoencoder[0](self.networks["vae"][1], video / np.float32(127.5) - 1))

    def encode_video(self, video: Frames) -> Latents:
        """The posterior mean, normalised to about unit variance."""
        return normalize(self.card["vae"], self.encode_mean(video))

    def decode(self, latents: Latents) -> Frames:
        """Videos of normalised latents, without their leading ones."""
        return np.asarray(jax.jit(constrain)(self.decode_on_devices(latents)))

    def decode_on_devices(self, latents: jax.Array | Latents) -> jax.Array:
        """The same, and under a mesh each device keeps the videos of its part of the batch."""
        latents = latents[:, -(self.card["latent_shape"][0] - self.card.get("lead", 0)) :]
        return self._autoencoder[1](self.networks["vae"][1], restore(self.card["vae"], latents))

    def decoder(self, params: Params, latents: Array) -> Array:
        """Videos 0..1 of normalised latents, a function to be traced and differentiated; `params` are the VAE's."""
        _, decode = _autoencoder(self.card, self.networks["vae"][0])
        latents = latents[:, -(self.card["latent_shape"][0] - self.card.get("lead", 0)) :]
        return jnp.clip((decode(params, restore(self.card["vae"], latents)) + 1) / 2, 0, 1)

    def times(self, steps: int | None) -> Points:
        """The card's own times, or `steps` of them: for a teacher any number, spaced over its schedule; for a student
        every second, third, .. of its own from the noisiest on.

        Raises:
          UserError: a student was not distilled for so many steps.
        """
        own = tuple(sorted(self.card["times"]))
        if steps is None or steps == len(own):
            return own
        if self.card["role"] != "student":
            return self.schedule.trailing(steps)
        stride, rest = divmod(len(own), steps)
        if rest or not stride:
            raise UserError(
                f"--steps={steps}: this student has {len(own)} steps, at the times {own}; give a number that divides it"
            )
        return own[::-1][::stride][::-1]

    @cached_property
    def sampler(self):
        """(params, noise, condition, negative, keys, times, guidance) -> latents, jitted; the last two are static.

        Under a mesh its devices share the batch, and all have the result.
        """
        network = self.networks["transformer"][0]

        def run(params, noise, condition, negative, keys, times, guidance):
            denoise = sampling.denoiser(
                network.apply, params, self.card["prediction_type"], self.schedule, negative, guidance
            )
            noise, condition, keys = jax.tree.map(lambda x: constrain(x, BATCH), (noise, condition, keys))
            latents = sampling.sample(denoise, noise, condition, times, self.schedule, self.card["sampler"], keys)
            return constrain(latents)

        return jax.jit(run, static_argnames=("times", "guidance"))

    def videos(
        self,
        condition: Condition,
        noise: Latents,
        keys: jax.Array,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        negative: Condition | None = None,
        params: Params | None = None,
        batch_size: int = 16,
    ) -> Iterator[tuple[Latents, Frames]]:
        """Latents and videos of batch after batch; the last one may be shorter.

        Args:
          condition: of the captions, a row a video.
          noise: the start of each video.
          keys: [n], for samplers that draw more noise.
          steps: how many; None is the card's own number.
          guidance: the paper's w (diffusers' scale is w + 1); None is the card's own.
          negative: the condition (b = 1) that guidance moves away from; None is the card's.
          params: of the transformer, where the pipeline has none.
        """
        guidance = self.card["guidance"] if guidance is None else guidance
        if negative is None and guidance:
            negative = self.negative
        params = self.networks["transformer"][1] if params is None else params
        for start in range(0, len(noise), batch_size):
            x_t, told, row_keys = padded_rows((noise, condition, keys), start, batch_size)
            latents = np.asarray(self.sampler(params, x_t, told, negative, row_keys, self.times(steps), guidance))
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
    """The card of the same networks for videos of other {frames, height, width, fps, independent_chunk}.

    Raises:
      UserError: the VAE cannot take this size.
    """
    part = card["vae"]
    network = build(part["architecture"], part["config"])
    card = card | {"video": dict(video), "latent_shape": [video["frames"], 0, 0, 0]}
    clip = jax.ShapeDtypeStruct((1, video["frames"], video["height"], video["width"], 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0))
    mean, _ = jax.eval_shape(_autoencoder(card, network)[0], params, clip)
    return {name: value for name, value in card.items() if name != "lead"} | {"latent_shape": list(mean.shape[1:])}


def padded_rows(tree: Any, start: int, count: int) -> Any:
    """`count` rows of every array from `start` on, the last one repeated where there are fewer: one compiled shape."""
    return jax.tree.map(lambda rows: rows[np.minimum(np.arange(start, start + count), len(rows) - 1)], tree)


def normalize(vae: Mapping[str, Any], latents: Array | np.ndarray) -> Array | np.ndarray:
    """The VAE's latents at about unit variance: (z - shift) scale, each one number or one for each channel."""
    return (latents - _factor(vae, "shift_factor")) * _factor(vae, "scaling_factor")


def restore(vae: Mapping[str, Any], latents: Array | np.ndarray) -> Array | np.ndarray:
    """The inverse of `normalize`."""
    return latents / _factor(vae, "scaling_factor") + _factor(vae, "shift_factor")


def _factor(vae: Mapping[str, Any], name: str) -> np.ndarray:
    factor = np.asarray(vae.get(name, 0.0), np.float32)  # without a shift it is 0
    return factor.reshape(1, 1, 1, 1, -1) if factor.ndim else factor


def to_uint8(video: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array, "*shape"]:
    """0..1 to 0..255, clipped."""
    return jnp.round(jnp.clip(video, 0, 1) * 255).astype(jnp.uint8)


def _shared(function: Callable) -> Callable:
    """(params, *batch) jitted; under a mesh its devices share the batch, and all have the result."""

    def run(params, *batch):
        result = function(params, *(constrain(rows, BATCH) for rows in batch))
        return jax.tree.map(constrain, result)

    return jax.jit(run)


def draw_noise(card: Card, seed: int, prompts: int, videos: int) -> tuple[Latents, jax.Array]:
    """Noise [prompts * videos, f h w c] and keys, prompt by prompt. A video's noise depends only on the seed,
    its prompt's number and its own: more prompts or videos leave it as it is.
    """
    return noise_at(card, seed, *(numbers.ravel() for numbers in jnp.indices((prompts, videos))))


def noise_at(card: Card, seed: int, prompt: Int[Array, " n"], video: Int[Array, " n"]) -> tuple[Latents, jax.Array]:
    """The same for videos of these prompts' numbers and their own."""
    fold = jax.vmap(jax.random.fold_in)
    keys = fold(fold(jnp.broadcast_to(jax.random.key(seed), prompt.shape), prompt), video)
    return np.asarray(sampling.normal(keys, card["latent_shape"])), sampling.fold(keys, 1)


def load(folder: str | os.PathLike, parts: Sequence[str] = COMPONENTS, tiled: bool = False) -> Pipeline:
    """Reads a model's folder, or one numbered checkpoint in it.

    Raises:
      UserError: what is missing or does not fit.
    """
    card = checkpoint.read_card(folder)
    require(card, [*parts, *(SAMPLED if "transformer" in parts else ())], folder)
    if "text_encoder" in parts:
        require(card, ("tokenizer",), folder)
    networks = {part: checkpoint.load_component(folder, card[part]) for part in parts}
    _require_roles(card, networks)
    tokenizer = None
    if "text_encoder" in parts:
        tokenizer = load_tokenizer(inside(checkpoint.root(folder), card["tokenizer"]["path"]))
    return Pipeline(card, networks, tokenizer, tiled)


def _require_roles(card: Card, networks: Mapping[str, tuple[Network, Params]]) -> None:
    """Raises UserError if a network from outside does not keep the contract of its role."""
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
                continue  # its condition is not known here: see `stages.common.open_view`
        roles.require(part, network, name, *examples, params=params)
