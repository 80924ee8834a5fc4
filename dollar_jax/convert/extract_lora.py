"""An adapter from a student with weights of its own: of the change of each layer, the best matrix of low rank."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from dollar_jax.card import SAMPLED, require
from dollar_jax.checkpoint import bring, digest, network_of, open_component, read_card, save_params, write_card
from dollar_jax.convert.export_lora import exportable
from dollar_jax.errors import UserError
from dollar_jax.files import new_folder, require_space
from dollar_jax.lazy import Lazy
from dollar_jax.models.linear import MATRICES
from dollar_jax.models.lora import adaptable

QUIET = 30  # seconds between two lines of progress
NAMED = 3  # parameters without an adapter that are named


class Change(NamedTuple):
    """The change of a parameter, squared and summed: all of it, and what its adapter keeps."""

    all: float
    kept: float


def extract_lora(
    student: Path, base: Path, target: Path, rank: int, targets: Sequence[str], item: str = ""
) -> dict[str, Change]:
    """Writes the student in `student` again as `target`, with an adapter on the network in `base`, and prints its loss.

    Of W_student - W_base the adapter has the `rank` largest singular values; zeros fill it up where the matrix has
    fewer. Two parameters, with blocks stacked, and the adapter are in memory at a time.

    Args:
      student: a student's folder, or one numbered checkpoint in it.
      base: the folder of its teacher.
      rank: rank of the adapter of each layer.
      targets: patterns of the layers with adapters, see `models.lora.adaptable`; none for all that can have a LoRA in
        the other library. A student may change most where a trained LoRA has none: from time to scales and shifts.
      item: the student's weights: student, ema, params or fake_score; by default those that its card names.
    Returns:
      The change of each parameter by its path; of a layer, the path is that of its kernel.
    Raises:
      UserError: the networks are not two of one kind, the rank does not fit, or nothing changed; then nothing is
        written.
    """
    cards, parts = [read_card(place) for place in (student, base)], []
    for place, card in zip((student, base), cards, strict=True):
        require(card, ("transformer",), place)
        if "lora" in card["transformer"]:
            raise UserError(
                f"{place} is an adapter already: give a student, and its teacher, with weights of their own"
            )
        parts.append(card["transformer"])
    require(cards[0], SAMPLED, student)
    if any(parts[0][name] != parts[1][name] for name in ("architecture", "config")):
        raise UserError(f"{student} and {base} are different networks: give the student's own teacher")
    parts[0] |= {"item": item} if item else {}
    network = network_of(parts[0])
    layers = adaptable(network, targets) if targets else exportable(parts[0], network.linears)
    ours, theirs = (
        flatten_dict(open_component(place, part), sep="/") for place, part in zip((student, base), parts, strict=True)
    )
    most = max((min(ours[f"{layer}/kernel"].shape[-2:]) for layer in layers), default=0)
    if not most:
        raise UserError(f"{student}: no layer of this network can have an adapter")
    if not 0 < rank <= most:
        raise UserError(f"--rank={rank}: the largest of the layers has rank {most}")
    with new_folder(target) as folder:
        adapter, changes = _adapter(ours, theirs, layers, rank)
        if not any(change.all for change in changes.values()):
            raise UserError(f"{student} and {base} have the same weights: there is nothing to extract")
        require_space(folder, sum(matrix.nbytes for matrix in adapter.values()))
        save_params(folder / "adapter", unflatten_dict(adapter, sep="/"))
        lora = {"base": "transformer", "sha256": digest(base, parts[1]), "rank": rank, "alpha": 0.0}
        brought = bring(cards[0], student, folder)
        bring(cards[1], base, folder, ("transformer",))
        part = parts[0] | {"path": "adapter", "item": "", "lora": lora}
        write_card(folder, cards[0] | brought | {"transformer": part})
    print("\n".join(_table(changes, layers)), flush=True)
    return changes


def _adapter(
    ours: Mapping[str, Lazy], theirs: Mapping[str, Lazy], layers: Sequence[str], rank: int
) -> tuple[dict[str, np.ndarray], dict[str, Change]]:
    """The adapter, and the change of each parameter."""
    adapter, changes = {}, {}
    work = {f"{layer}/kernel": _work(ours[f"{layer}/kernel"].shape) for layer in layers}
    begun = shown = time.monotonic()
    done = 0
    for path, parameter in ours.items():
        new, old = parameter.read(), theirs[path].read()
        if path not in work:
            rows = zip(new, old, strict=True) if new.ndim > 2 else [(new, old)]  # one in float32 at a time
            changes[path] = Change(sum(_squares(*row) for row in rows), 0.0)
            continue
        *stack, rows, columns = parameter.shape
        shapes = (*stack, rows, rank), (*stack, rank, columns)
        matrices, own = [np.zeros(shape, np.float32) for shape in shapes], min(rank, rows, columns)
        total = kept = 0.0
        for block in np.ndindex(*stack):
            total += _squares(new[block], old[block])
            a, b, values = _factors(_difference(new[block], old[block]), own)
            matrices[0][block][:, :own], matrices[1][block][:own] = a, b
            kept += float(np.square(values, dtype=np.float64).sum())
            done += work[path] / prod(stack)
            if (now := time.monotonic()) - shown > QUIET:
                left = (now - begun) * (sum(work.values()) / done - 1) / 60
                print(f"{path}: {done / sum(work.values()):.0%}, {left:,.0f} min left", flush=True)
                shown = now
        changes[path] = Change(total, kept)
        adapter |= {f"{path.rpartition('/')[0]}/{name}": x for name, x in zip(MATRICES, matrices, strict=True)}
    return adapter, changes


def _work(shape: Sequence[int]) -> int:
    """Of the eigenvectors of W W^T, in proportion."""
    return prod(shape) * min(shape[-2:]) * 2 + prod(shape[:-2]) * 10 * min(shape[-2:]) ** 3


def _difference(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    return new.astype(np.float32) - old.astype(np.float32)


def _squares(new: np.ndarray, old: np.ndarray) -> float:
    return float(np.square(_difference(new, old), dtype=np.float64).sum())


@partial(jax.jit, static_argnames="rank")
def _factors(
    change: Float[Array, "n m"], rank: int
) -> tuple[Float[Array, "n r"], Float[Array, "r m"], Float[Array, " r"]]:
    """U sqrt(S), sqrt(S) V^T and S of the largest singular values, on JAX's device.

    U are the eigenvectors of C C^T with the largest eigenvalues, and S V^T = U^T C. So rounding of the eigenvalues does
    not matter: where U has all directions, U U^T C = C. It is several times as fast as a decomposition of C.
    """
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    wide = change if change.shape[0] <= change.shape[1] else change.T
    vectors = jnp.linalg.eigh(product(wide, wide.T))[1][:, ::-1][:, :rank]
    rows = product(vectors.T, wide)
    values = jnp.linalg.norm(rows, axis=1)
    root = jnp.sqrt(values)
    left, right = vectors * root[None], rows / jnp.where(root > 0, root, 1)[:, None]
    return (left, right, values) if wide is change else (right.T, left.T, values)


def _table(changes: Mapping[str, Change], layers: Sequence[str]) -> list[str]:
    """What is printed: of each layer, of all, and of what has no adapter."""
    total = sum(change.all for change in changes.values())
    width = max(len(layer) for layer in [*layers, "with an adapter"])

    def line(name: str, change: float, kept: float) -> str:
        return f"{name:{width}} {change / total:9.2%} {kept / change if change else 1:9.2%}"

    rows = {layer: changes[f"{layer}/kernel"] for layer in layers}
    covered, kept = (sum(change[i] for change in rows.values()) for i in (0, 1))
    rest = {path: change.all for path, change in changes.items() if path.removesuffix("/kernel") not in rows}
    largest = sorted((path for path in rest if rest[path]), key=rest.get, reverse=True)[:NAMED]
    named = ", ".join(f"{path} {rest[path] / total:.2%}" for path in largest)
    return [
        "Squared change of the weights: the share of each layer, and how much of it the adapter keeps",
        *(line(layer, *change) for layer, change in rows.items()),
        line("with an adapter", covered, kept),
        f"{'without':{width}} {(total - covered) / total:9.2%}" + (f": {named}" if named else ""),
        line("all", total, kept),
    ]
