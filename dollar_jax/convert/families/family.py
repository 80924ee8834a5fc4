"""The description of a family of text-to-video models: its form. Each module beside this one fills it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from dollar_jax.card import Card
from dollar_jax.convert.tables import Rule
from dollar_jax.errors import UserError
from dollar_jax.reading import require_schema

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # each library's name for weights


@runtime_checkable
class Keys(Protocol):
    """The config.json and the tensors of a network in another library: a module of `dollar_jax.convert`."""

    def config(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The config of our network, from the content of config.json. Raises UserError for a network that it is not."""

    def their_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `config`. Raises UserError for a network that the other library does not have."""

    def table(self, config: Mapping[str, Any]) -> list[Rule]:
        """The rules for the tensors of a network of our `config`, see `dollar_jax.convert.tables`."""


@runtime_checkable
class VaeKeys(Keys, Protocol):
    """The same for a VAE, whose config.json also says how its latents are brought to zero mean and unit variance."""

    def scale(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """`scaling_factor` of a card's VAE (and `shift_factor`, if there is one), from the content of config.json."""

    def their_scale(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `scale`, from a card's VAE."""


@runtime_checkable
class OriginalKeys(Keys, Protocol):
    """The same for a network that its authors' code calls by other names than the library."""

    def original_table(self, config: Mapping[str, Any]) -> list[Rule]:
        """The rules for a file with these names."""


@dataclass(frozen=True)
class Architecture:
    """A network that we and another library have.

    Attributes:
      component: its name in our cards: transformer, vae, text_encoder or clip.
      network: its module in `dollar_jax.models`, or MODULE:FUNCTION for one from outside.
      keys: its tensors and its config.json there.
      library: the Python package that loads it.
      class_name: its class there.
    """

    component: str
    network: str
    keys: Keys
    library: Literal["diffusers", "transformers"]
    class_name: str

    @property
    def stem(self) -> str:
        """The name of its files of weights there, without an ending."""
        return STEMS[self.library]


def scheduler_settings(
    theirs: Mapping[str, Any],
    known: Collection[str],
    schema: Mapping[str, Any],
    defaults: Mapping[str, Any],
    allowed: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """The content of a scheduler_config.json with the defaults of diffusers for the fields that it leaves out.

    Args:
      known: classes of schedulers that can be followed here.
      schema: types and ranges of fields.
      defaults: the defaults of diffusers.
      allowed: field -> the values that can be followed here.
    Raises:
      UserError: another class, or a field that is out of its range or cannot be followed.
    """
    name = theirs.get("_class_name")
    if name not in known:
        raise UserError(f"the scheduler is a {name}, which cannot be converted; known are {', '.join(known)}")
    require_schema(theirs, schema, "the scheduler", "no such scheduler can be converted")
    settings = {**defaults, **theirs}
    for field, values in allowed.items():
        if settings[field] not in values:
            wanted = " or ".join(map(repr, values))
            raise UserError(f"the scheduler has {field} = {settings[field]!r}: only {wanted} can be converted")
    return settings


@dataclass(frozen=True)
class Family:
    """All that conversion and planning know of a family of text-to-video models.

    Attributes:
      pipeline: its class in diffusers, as model_index.json names it.
      components: its transformer, VAE and text encoder.
      index: card -> entries of model_index.json beside components, tokenizer and scheduler. A folder in which they
        differ, or which has more, is refused.
      folders: where the transformer is several networks: the folder of each in the pipeline's. Their tensors are then
        in one table, each behind its folder's name.
      beside: content of model_index.json -> fields of our transformer's config that are there, not in config.json.
        Raises UserError.
      low_guidance: the w at times below the second expert's boundary; None: `guidance`.
      clean: whether captions pass `data.text.clean_caption`.
      public: the cards of public models by name, as far as a plan needs them: networks, text length, prediction type
        and schedule. No two families share a name.
      guidance: the paper's w that the public models are sampled with.
      negative_prompt: the caption of the prediction that guidance leads away from.
      text_length: card -> tokens of a caption. The card has its three networks.
      at_own_size: card -> the card at the size of video that the transformer was trained for: with `video`,
        `latent_shape` and, where it applies, `lead`. Beyond the networks, the card has all fields but these.
      read_scheduler: content of scheduler_config.json -> `prediction_type`, `schedule`, `times` and `sampler` of a
        card. Raises UserError for a scheduler that we cannot follow.
      write_scheduler: card -> (class, content of scheduler_config.json) of a scheduler in diffusers that samples
        exactly as the card says, or None if there is none. Then the export brings `dollar_scheduler.py`.
      call: card -> arguments of the pipeline, beside the prompt, that sample as the card says.
      flow_map: the family of this one's flow maps, which diffusers samples by another pipeline; None: it has none.
      unscaled: Python expression in `pipe` and `latents`, its output of type "latent": the VAE's latents [b c f h w].
    """

    pipeline: str
    components: tuple[Architecture, ...]
    public: Mapping[str, Card]
    guidance: float
    text_length: Callable[[Card], int]
    at_own_size: Callable[[Card], Card]
    read_scheduler: Callable[[Mapping[str, Any]], Card]
    write_scheduler: Callable[[Card], tuple[str, dict[str, Any]] | None]
    call: Callable[[Card], dict[str, Any]]
    unscaled: str
    negative_prompt: str = ""
    index: Callable[[Card], dict[str, Any]] = lambda card: {}
    clean: bool = False
    folders: tuple[str, ...] = ("transformer",)
    low_guidance: float | None = None
    beside: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda index: {}
    flow_map: "Family | None" = None

    def component(self, name: str) -> Architecture:
        """Its transformer, vae or text_encoder."""
        return next(architecture for architecture in self.components if architecture.component == name)
