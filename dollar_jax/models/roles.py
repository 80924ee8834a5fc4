"""The contract of networks: arguments and results of each role, for built-in networks and networks from outside.

A network is a `Network` (init, apply). `apply(params, *arguments, method=NAME)` calls the method NAME of its role, by
default `__call__`. `build(**config) -> Network` of a module gets the sizes in a card or a config and the options of the
role:

| role | options of build | protocol |
|---|---|---|
| transformer | dtype, remat, attention | `Transformer` |
| vae | dtype | `Autoencoder` |
| text_encoder | | `TextEncoder` |
| reward_model | | `RewardModel` |

dtype: dtype of the computation; parameters are float32. remat: the rematerialisation policy, one of `stack.REMAT`.
attention: the attention kernel, see `models.attention`, or None. With `attention.FORWARD_MODE` the network must have a
forward-mode derivative (`jax.jvp`). A network may ignore all three, but must accept them (`**options`).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dollar_jax.errors import UserError, first_line
from dollar_jax.models.network import Network, parameter_shapes
from dollar_jax.types import Condition, Latent, PerExample, Times, Tokens, Video

PLACE = "see dollar_jax/models/roles.py"


class Transformer(Protocol):
    """The network of teacher, student and fake score. Only objectives with `Own.reads_features` need `features`.

    With `generator.flow_map` the student's is built with `gate_value` in its config and gets a fourth argument, the
    times to which a step leads, see `models.flow_map`: the role flow_map.
    """

    def __call__(self, latents: Latent, times: Times, condition: Condition) -> Latent:
        """The prediction at `latents` x_t, in their shape; `times` are those of the card's schedule."""

    def features(
        self, latents: Latent, times: Times, condition: Condition, depths: Sequence[float]
    ) -> Sequence[Float[Array, "b n d"]]:
        """For each of `depths`, shares of the network in 0..1 in ascending order: what it has computed up to there."""


class Autoencoder(Protocol):
    """The VAE."""

    def encode(self, video: Video) -> tuple[Latent, Latent]:
        """Mean and log variance of the posterior, for videos in -1..1."""

    def decode(self, latents: Latent) -> Video:
        """Videos in -1..1 from latents in the VAE's own scale."""


class TextEncoder(Protocol):
    """The encoder of captions."""

    def __call__(self, tokens: Tokens, mask: Bool[Array, "b l"]) -> Condition:
        """The condition of the transformer; `mask` is True at tokens and False at padding."""


class RewardModel(Protocol):
    """The latent reward model."""

    def __call__(self, latents: Latent, condition: Condition) -> PerExample:
        """The normalised reward of each example."""


def require(role: str, network: Network, name: str, *examples, params=None) -> None:
    """Checks the contract of a role by an abstract call, which needs no memory and no arithmetic.

    Args:
      role: transformer, flow_map, vae, text_encoder or reward_model.
      name: name of the network, for the message.
      *examples: ShapeDtypeStructs of the arguments, b = 1. vae: a video; text_encoder: tokens and mask; others: latents
        and condition.
      params: shapes of the parameters; None: from `network.init`.
    Raises:
      UserError: the call fails, or its result has another shape.
    """
    if params is None:
        params = _try(role, name, "init(key)", lambda: network.init(jax.random.key(0)))

    def call(words: str, *arguments, **method):
        return _try(role, name, words, lambda p, *a: network.apply(p, *a, **method), params, *arguments)

    match role:
        case "transformer" | "flow_map":
            latents, condition = examples
            times = jax.ShapeDtypeStruct((1,), jnp.float32)
            words, targets = "(latents, times, condition)", ()
            if role == "flow_map":
                words, targets = "(latents, times, condition, targets)", (times,)
            _same(role, name, words, call(words, latents, times, condition, *targets), latents)
        case "vae":
            (video,) = examples
            posterior = call("encode(video)", video, method="encode")
            if not (isinstance(posterior, tuple) and len(posterior) == 2 and posterior[0].ndim == 5):
                raise _fault(role, name, "encode(video)", "mean and log variance, each [b f h w c]", posterior)
            words = "decode(latents)"
            _same(role, name, words, call(words, posterior[0], method="decode"), video)
        case "text_encoder":
            tokens, mask = examples
            words = "(tokens, mask)"
            condition = call(words, tokens, mask)
            if not isinstance(condition, Condition) or condition.embedding.ndim != 3:
                raise _fault(role, name, words, "a dollar_jax.types Condition", condition)
        case "reward_model":
            words = "(latents, condition)"
            _same(role, name, words, call(words, *examples), jax.ShapeDtypeStruct((1,), jnp.float32))


def features(
    network: Network, name: str, latents: jax.ShapeDtypeStruct, condition: Condition, depths: Sequence[float]
) -> Sequence[jax.ShapeDtypeStruct]:
    """Shapes of a transformer's `features` at these depths, for latents and a condition of these shapes.

    Args:
      name: name of the network, for the message.
    Raises:
      UserError: the network has no such method.
    """
    times = jax.ShapeDtypeStruct(latents.shape[:1], jnp.float32)

    def call(params, *arguments):
        return network.apply(params, *arguments, depths, method="features")

    words = "(latents, times, condition, depths, method='features')"
    return _try("transformer", name, words, call, parameter_shapes(network), latents, times, condition)


def _try(role: str, name: str, words: str, function: Callable, *arguments):
    try:
        return jax.eval_shape(function, *arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} as {role}: {words} fails: {first_line(error)}; {PLACE}") from error


def _same(role: str, name: str, words: str, result, wanted) -> None:
    if getattr(result, "shape", None) != wanted.shape:
        raise _fault(role, name, words, f"an array of shape {wanted.shape}", result)


def _fault(role: str, name: str, words: str, wanted: str, result) -> UserError:
    found = jax.tree.map(lambda x: x.shape, result)
    return UserError(f"{name} as {role}: {words} must return {wanted}, not {found}; {PLACE}")
