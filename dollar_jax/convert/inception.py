"""The files of torchvision's Inception v3, and timm's of the same weights: their keys in our names."""

import jax

from dollar_jax.convert.tables import Rule, convolution, same
from dollar_jax.convert.tensors import Tensors
from dollar_jax.errors import UserError
from dollar_jax.types import Params

NAMES = {
    "kernel": ("conv.weight", convolution),
    "scale": ("bn.weight", same),
    "bias": ("bn.bias", same),
    "mean": ("bn.running_mean", same),
    "variance": ("bn.running_var", same),
}
FID = 1008  # classes of the network that FID is defined with, which pools in another way


def table(target: Params) -> list[Rule]:
    """The rules for the parameters `target` of `models.inception`."""
    paths = [[step.key for step in path] for path, _ in jax.tree.leaves_with_path(target)]
    return [
        Rule(".".join([*modules, NAMES[name][0]]), "/".join([*modules, name]), NAMES[name][1])
        for *modules, name in paths
    ]


def select(tensors: Tensors) -> Tensors:
    """The tensors that make the features: no classifiers, no counters.

    Raises:
      UserError: these are the weights of FID.
    """
    if tensors.shapes.get("fc.weight", ())[:1] == (FID,):
        raise UserError("these are the weights of FID; its network pools in another way: take torchvision's")
    unused = [key for key in tensors if key.startswith(("fc.", "AuxLogits.")) or key.endswith("num_batches_tracked")]
    return tensors.without(unused)
