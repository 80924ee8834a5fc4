"""Public PyTorch weights to checkpoints of dollar_jax, and models of dollar_jax to PyTorch.

    python -m dollar_jax.convert from_torch SRC DST
    python -m dollar_jax.convert to_torch   SRC DST

from_torch: SRC is a pipeline folder of diffusers (of a family in docs/pytorch.md), one model
folder of diffusers or transformers (transformer, VAE, text encoder, CLIP), or a file of open_clip,
of LAION's aesthetic predictors or of Wan's authors (also ComfyUI's). Safetensors or weights-only
pickles, in one file or sharded.
A folder on the Hugging Face hub is named by its id (Wan-AI/Wan2.1-T2V-1.3B-Diffusers): its
safetensors, JSON and tokenizer files are downloaded into the hub's cache, and go on where they broke off.
to_torch: SRC is a teacher's or student's folder (W/vsd_cd, or W/vsd_cd/checkpoints/1000); DST
becomes a folder for diffusers, with a README that says how to sample from it; with --original
it has the transformer alone, as a file in the names that Wan's authors and ComfyUI use.
DST must not exist. Tensors keep their dtype.
"""

from pathlib import Path

from absl import flags

from dollar_jax.cli import run
from dollar_jax.errors import UserError

_ITEM = flags.DEFINE_string("item", "", "to_torch: student, ema, params or fake_score of a training stage.")
_ORIGINAL = flags.DEFINE_bool("original", False, "to_torch: the transformer alone, in the names of its authors' code.")
_REVISION = flags.DEFINE_string("revision", "", "from_torch, on the hub: a branch, a tag or a commit; '' is main.")


def main(command: str, source: str, target: str) -> None:
    from dollar_jax.convert.from_torch import from_torch  # JAX starts here
    from dollar_jax.convert.to_torch import to_torch

    match command:
        case "from_torch":
            card = from_torch(source, Path(target), _REVISION.value)
            print(f"{target}: a {card['role']}")
        case "to_torch":
            to_torch(Path(source), Path(target), _ITEM.value, _ORIGINAL.value)
            print(f"{target}: " + ("model.safetensors" if _ORIGINAL.value else "its README.md says how to sample"))
        case _:
            raise UserError(f"{command} is neither from_torch nor to_torch; see --help")


if __name__ == "__main__":
    run(main, ("COMMAND", "SRC", "DST"))
