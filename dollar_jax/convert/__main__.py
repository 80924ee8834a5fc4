"""Public PyTorch weights to checkpoints of dollar_jax, and models of dollar_jax to PyTorch.

    python -m dollar_jax.convert from_torch SRC DST
    python -m dollar_jax.convert to_torch   SRC DST
    python -m dollar_jax.convert extract_lora STUDENT BASE OUT --rank=R

from_torch: SRC is a pipeline folder of diffusers (of a family in docs/pytorch.md), one model
folder of diffusers or transformers (transformer, VAE, text encoder, CLIP), or a file of open_clip,
of LAION's aesthetic predictors or of Wan's authors (also ComfyUI's). Safetensors or weights-only
pickles, in one file or sharded.
A folder on the Hugging Face hub is named by its id (Wan-AI/Wan2.1-T2V-1.3B-Diffusers): its
safetensors, JSON and tokenizer files are downloaded into the hub's cache, and go on where they broke off.
A LoRA beside the weights of a transformer is merged into them; --lora names one from elsewhere: safetensors of
diffusers, or with the names of Wan's authors (ComfyUI's), or a folder of PEFT.
to_torch: SRC is a teacher's or student's folder (W/vsd_cd, or W/vsd_cd/checkpoints/1000); DST
becomes a folder for diffusers, with a README that says how to sample from it; with --original
it has the transformer alone, as a file in the names that Wan's authors and ComfyUI use.
Of a student that is an adapter, DST gets the LoRA, for diffusers and for ComfyUI, and the scheduler; with --merge it is
the whole folder, with the adapter in the weights.
extract_lora: OUT becomes a student like STUDENT, a checkpoint of ours, whose transformer is BASE, its teacher, with an
adapter of rank R: the best one for the change of each layer.
DST must not exist. Tensors keep their dtype.
"""

import sys
from pathlib import Path

from absl import flags

from dollar_jax.cli import required, run
from dollar_jax.errors import UserError

_ITEM = flags.DEFINE_string("item", "", "to_torch, extract_lora: student, ema, params or fake_score of a stage.")
_ORIGINAL = flags.DEFINE_bool("original", False, "to_torch: the transformer alone, in the names of its authors' code.")
_MERGE = flags.DEFINE_bool("merge", False, "to_torch: the whole folder of a student that is an adapter.")
_REVISION = flags.DEFINE_string("revision", "", "from_torch, on the hub: a branch, a tag or a commit; '' is main.")
_LORA = flags.DEFINE_string("lora", "", "from_torch: a LoRA to be merged, a file or a folder here.")
_RANK = flags.DEFINE_integer("rank", 0, "extract_lora: the rank of the adapter, for example 64.")
_TARGETS = flags.DEFINE_list("targets", [], "extract_lora: patterns of the layers with an adapter; default: all.")


def main(command: str, *places: str) -> None:
    from dollar_jax.convert.extract_lora import extract_lora  # JAX starts here
    from dollar_jax.convert.from_torch import from_torch
    from dollar_jax.convert.to_torch import to_torch

    source, target = places[0], places[-1]
    match command:
        case "from_torch":
            card = from_torch(source, Path(target), _REVISION.value, _LORA.value)
            print(f"{target}: a {card['role']}")
        case "extract_lora":
            required(_RANK)
            extract_lora(Path(source), Path(places[1]), Path(target), _RANK.value, _TARGETS.value, _ITEM.value)
            print(f"{target}: a student; to_torch writes its LoRA")
        case "to_torch":
            to_torch(Path(source), Path(target), _ITEM.value, _ORIGINAL.value, _MERGE.value)
            print(f"{target}: " + ("model.safetensors" if _ORIGINAL.value else "its README.md says how to sample"))
        case _:
            raise UserError(f"{command} is neither from_torch nor to_torch nor extract_lora; see --help")


if __name__ == "__main__":
    extracts = sys.argv[1:2] == ["extract_lora"]
    run(main, ("COMMAND", "STUDENT", "BASE", "OUT") if extracts else ("COMMAND", "SRC", "DST"))
