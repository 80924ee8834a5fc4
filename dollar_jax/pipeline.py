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
from dollar_jax.diffusion import Schedule
from dollar_jax.errors import UserError
from dollar_jax.models import build, independent_chunks
from dollar_jax.models.network import Network
from dollar_jax.models.tiling import in_tiles
from dollar_jax.reading import inside
from dollar_jax.sharding import BATCH, constrain
from dollar_jax.types import Params

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

    @property
    def _scale(self) -> float:
        return self.card["vae"]["scaling_factor"]

    def encode_text(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [n l d] float32 and the mask [n l] of real tokens."""
        tokens, mask = tokenize(self.tokenizer, list(captions), self.card["tokenizer"]["length"])
        # The public pipeline lets the encoder see the padding: so was the teacher trained.
        return np.asarray(self._encode_text(self.networks["text_encoder"][1], tokens)), mask

    def encode_mean(self, video: Frames) -> Latents:
        """The posterior mean, as the VAE has it."""
        return np.asarray(self._autoencoder[0](self.networks["vae"][1], video / np.float32(127.5) - 1))

    def encode_video(self, video: Frames) -> Latents:
        """The posterior mean, scaled to about unit variance."""
        return self.encode_mean(video) * np.float32(self._scale)

    def decode(self, latents: Latents) -> Frames:
        """Videos of scaled latents, without their leading ones."""
        return np.asarray(jax.jit(constrain)(self.decode_on_devices(latents)))

    def decode_on_devices(self, latents: jax.Array | Latents) -> jax.Array:
        """The same, and under a mesh each device keeps the videos of its part of the batch."""
        latents = latents[:, -(self.card["latent_shape"][0] - self.card.get("lead", 0)) :]
        return self._autoencoder[1](self.networks["vae"][1], latents / np.float32(self._scale))

    def decoder(self, params: Params, latents: Array) -> Array:
        """Videos 0..1 of scaled latents as a function that can be traced and differentiated; `params` are the VAE's."""
        _, decode = _autoencoder(self.card, self.networks["vae"][0])
        latents = latents[:, -(self.card["latent_shape"][0] - self.card.get("lead", 0)) :]
        return jnp.clip((decode(params, latents / self._scale) + 1) / 2, 0, 1)

    def times(self, steps: int | None) -> tuple[int, ...]:
        """The card's own times, or `steps` of them.

        Raises:
          UserError: a student was not distilled for so many steps.
        """
        own = tuple(self.card["times"])
        if steps is None or steps == len(own):
            return own
        times = diffusion.trailing_times(steps, self.schedule.signal.shape[0] - 1)
        if self.card["role"] == "student" and not set(times) <= set(own):
            raise UserError(f"--steps={steps}: this student knows the times {own}; take a number of steps among them")
        return times

    @cached_property
    def sampler(self):
        """(params, noise, text, null_text, keys, times, guidance) -> latents, jitted; times and guidance are static.

        Under a mesh its devices share the batch, and all have the result.
        """
        network = self.networks["transformer"][0]

        def run(params, noise, text, null_text, keys, times, guidance):
            denoise = sampling.denoiser(
                network.apply, params, self.card["prediction_type"], self.schedule, null_text, guidance
            )
            noise, text, keys = (constrain(x, BATCH) for x in (noise, text, keys))
            return constrain(sampling.sample(denoise, noise, text, times, self.schedule, self.card["sampler"], keys))

        return jax.jit(run, static_argnames=("times", "guidance"))

    def generate(
        self,
        text: Float[np.ndarray, "n l d"],
        noise: Latents,
        keys: jax.Array,
        steps: int | None = None,
        guidance: float | None = None,
        batch_size: int = 16,
    ) -> Iterator[Latents]:
        """Latents of batch after batch; the last one may be shorter.

        Args:
          text: embeddings of the captions, a row a video.
          noise: where each video starts.
          keys: [n], for samplers that draw more noise.
          steps: how many; None is the card's own number.
          guidance: the paper's w (diffusers' scale is w + 1); None is the card's own.
        """
        guidance = self.card["guidance"] if guidance is None else guidance
        null_text, _ = self.encode_text([""])
        for start in range(0, len(noise), batch_size):
            part = slice(start, start + batch_size)
            rows = pad_rows((noise[part], text[part], keys[part]), batch_size)
            latents = self.sampler(
                self.networks["transformer"][1], rows[0], rows[1], null_text, rows[2], self.times(steps), guidance
            )
            yield np.asarray(latents)[: len(noise[part])]


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


def pad_rows(arrays: tuple, count: int) -> tuple:
    """Each array with its last row repeated up to `count` rows: one compiled shape for the last batch too."""
    return tuple(x[jnp.minimum(jnp.arange(count), len(x) - 1)] for x in arrays)


def to_uint8(video: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array, "*shape"]:
    """0..1 to 0..255, clipped."""
    return jnp.round(jnp.clip(video, 0, 1) * 255).astype(jnp.uint8)


def _shared(function: Callable[[Params, Array], Array]) -> Callable:
    """Jitted; under a mesh its devices share the batch, and all have the result."""
    return jax.jit(lambda params, batch: constrain(function(params, constrain(batch, BATCH))))


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
    networks = {part: checkpoint.load_component(folder, card[part]) for part in parts}
    tokenizer = None
    if "text_encoder" in parts:
        require(card, ("tokenizer",), folder)
        tokenizer = load_tokenizer(inside(checkpoint.root(folder), card["tokenizer"]["path"]))
    return Pipeline(card, networks, tokenizer, tiled)
