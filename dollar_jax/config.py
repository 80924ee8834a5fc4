"""Building blocks of config files. A config is a Python file with get_config() -> ConfigDict.

`dollar_jax.fields` has the meaning of every field.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dollar_jax.importing import trust

Fields = Mapping[str, Any] | ConfigDict | float | int  # fields of a named function; a number is its weight

# Fields that say how a machine computes, not what: a resumed run may change them.
MACHINE = ("mesh", "remat", "attention", "offload", "data.encode_batch_size")

# --config.PLACE.NAME.FIELD=VALUE; PLACE is a dictionary of functions by import path.
NAMED = re.compile(r"--?config\.((?:\w+\.)*(?:objectives|metrics))\.([\w.]+)(:\w+)?((?:\.\w+)*)(=.*)?", re.S)
REWARD = re.compile(r"--?config\.(reward)\.(name|options\.\w+)(=.*)?", re.S)


def result_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a run's result depends on, all but `MACHINE`: {"vae": {"kl": 1}} -> {"vae.kl": 1}."""
    machine = tuple(f"{field}." for field in MACHINE)
    return {name: value for name, value in _flat(config).items() if not f"{name}.".startswith(machine)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def trust_networks(config: ConfigDict) -> None:
    """Trusts every module that a config names in a field `architecture`, because a config is the user's own code.

    Checkpoints that the run loads may then name networks of these modules.
    """
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            trust_networks(value)
        elif name == "architecture" and ":" in value:
            trust([value.partition(":")[0]])


def optimizer(learning_rate: float, **changes) -> ConfigDict:
    """Fields of an optimiser."""
    adam = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "moment": "float32"}
    return ConfigDict({"learning_rate": learning_rate, "warmup": 20, "decay_from": 0.0, "clip": 1.0, **adam, **changes})


def named(**fields: Fields) -> ConfigDict:
    """A dictionary of functions, import path -> fields, in this order, for `generator.objectives` and `report.metrics`.

    Fields are the options of a function, and the weight of an objective; see `set_named`.
    """
    config = ConfigDict(allow_dotted_keys=True, sort_keys=False)
    set_named(config, fields)
    return config


def set_named(config: ConfigDict, changes: Mapping[str, Fields] | ConfigDict) -> None:
    """Changes fields of the functions in a dictionary made by `named`, or adds functions.

    Args:
      changes: import path (`consistency`, `my_fork.losses:hinge`) -> fields to change; a number is the weight.
    """
    with config.unlocked():
        for name, change in changes.items():
            fields = ConfigDict(_fields(config[name]) if name in config else {})
            fields.update(_fields(change))
            if name in config:
                del config[name]  # ConfigDict does not let a dictionary replace a number
            config[name] = fields


def _fields(value: Fields) -> dict[str, Any]:
    return {"weight": float(value)} if isinstance(value, int | float) else dict(value)


def take_named(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str, str]]]:
    """Splits the flags that change named functions and the reward from a command line.

    absl cannot parse them: it would read the dots of an import path as fields, and refuse fields that are new.

        --config.generator.objectives.consistency=0.3                 the weight
        --config.generator.objectives.consistency.guidance=2          an option
        --config.generator.objectives.my_fork.losses:hinge=0.1        one more objective
        --config.generator.objectives.my_fork.losses:hinge.margin=2   its option
        --config.reward.name=my_rewards:score                         another reward, without the options of the first
        --config.reward.options.strictness=2                          its option

    Returns:
      the other arguments, and (place in the config, import path, field or '', value) for each of these flags; for the
      reward (reward, name or options.NAME, '', value).
    """
    rest, found, words = [], [], iter(arguments)
    for word in words:
        if match := NAMED.fullmatch(word):
            place, name, function, fields, value = match.groups()
            value = next(words, "") if value is None else value[1:]
            if function is None:
                name, _, fields = name.partition(".")
            found.append((place, name + (function or ""), (fields or "").removeprefix("."), value))
        elif match := REWARD.fullmatch(word):
            place, field, value = match.groups()
            found.append((place, field, "", next(words, "") if value is None else value[1:]))
        else:
            rest.append(word)
    return rest, found


def put_named(config: ConfigDict, changes: Sequence[tuple[str, str, str, str]]) -> None:
    """Applies the changes from `take_named` to a config.

    Raises:
      KeyError, AttributeError: the config has no such place.
    """
    _put_reward(config, {field: text for place, field, _, text in changes if place == "reward"})
    for place, name, fields, text in changes:
        if place == "reward":
            continue
        functions = config
        for field in place.split("."):
            functions = functions[field]
        value = _literal(text)
        for field in reversed(fields.split(".") if fields else []):
            value = {field: value}
        set_named(functions, {name: value})


def _put_reward(config: ConfigDict, changes: Mapping[str, str]) -> None:
    """Another reward than the config's has only the options that are given with it."""
    changes = dict(changes)
    name = changes.pop("name", None)
    if name is not None and name != config.reward.name:
        config.reward.name, config.reward.options = name, ConfigDict()
    for field, text in changes.items():
        options, option = config.reward.options, field.removeprefix("options.")
        with options.unlocked():
            options[option] = text if isinstance(options.get(option), str) else _literal(text)


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):  # as absl writes them
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def stage(iterations: int, batch_size: int, **fields) -> ConfigDict:
    """Fields of a training stage."""
    log = {"accumulate": 1, "save_every": 200, "keep": 2, "best": "", "log_every": 20, "show_every": 500}
    return ConfigDict({"iterations": iterations, "batch_size": batch_size, **log, **fields})


def data(**more) -> ConfigDict:
    """Fields of the data; 5 % of a dataset's files are held out (`dollar_jax.data.held_out`)."""
    fields = {"path": "", "prompts": "", "held_out": 0.05, "held_out_files": (), "encode_batch_size": 1}
    return ConfigDict(fields | more)


def reward(name: str, channels: int, batch_size: int, **changes) -> ConfigDict:
    """Fields of a reward, and of the latent reward model that learns it.

    Args:
      channels: channels of the teacher's latents.
    """
    fields = {"options": {}, "frames": 0, "timeout": 900.0, "reads_captions": False, "architecture": "latent_reward"}
    fields |= {"network": {"channels": channels, "backbone": "2d"}, "optimizer": optimizer(1e-3)}
    fields |= {"replay": 0, "pretrain": 0, "concurrent": True, "step": "joint"}
    return ConfigDict({"name": name, "batch_size": batch_size, **fields, **changes}, convert_dict=True)


def lora(rank: int = 0, **changes) -> ConfigDict:
    """Fields of the adapters that are trained in place of student and fake score; by default there are none."""
    targets = "*attention/*", "*/expand", "*/contract"  # attention and MLP of every transformer here
    return ConfigDict({"rank": rank, "fake_score_rank": 0, "alpha": 0.0, "targets": targets, **changes})


def held_out(videos_per_caption: int) -> ConfigDict:
    """Fields of the held-out evaluation of a student."""
    return ConfigDict({"videos_per_caption": videos_per_caption})


def guard(metric: str, tolerance: float, patience: int = 3) -> ConfigDict:
    """Fields of the guard, see `dollar_jax.guard.assess`."""
    return ConfigDict({"metric": metric, "tolerance": tolerance, "patience": patience})
