"""Encodes the videos and captions once, into `workdir/encoded`: training runs neither VAE nor text encoder."""

from collections import deque
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from dollar_jax.card import Card
from dollar_jax.checkpoint import bring, read_card, save_params, write_card
from dollar_jax.data.dataset import write_dataset
from dollar_jax.data.encoding import encode as encode_examples
from dollar_jax.data.pipeline import in_order
from dollar_jax.data.text import load_tokenizer, write_word_tokenizer
from dollar_jax.distributed import is_main
from dollar_jax.models import build
from dollar_jax.pipeline import at_size, load
from dollar_jax.stages.common import video_source

BATCH_SIZE = 32


def encode(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """Writes latents and text embeddings of `config.data`.

    The networks are those of the teacher at `config.teacher.path`; without it, the VAE of this run and a random text
    encoder for the words in the captions.
    """
    del mesh  # the current one: all devices share every batch
    folder = workdir / "encoded"
    if (folder / "data").exists():
        return
    source = video_source(config)
    if "latents" in source[0]:  # already encoded by `python -m dollar_jax.data --encode`
        return
    if config.teacher.path:
        card = bring(read_card(config.teacher.path), config.teacher.path, folder)
    else:
        card = bring(read_card(workdir / "vae"), workdir / "vae", folder, ("vae",))
        card |= _text_encoder(config, folder, source)
    card = at_size({"role": "vae"} | card, config.video.to_dict())
    write_card(folder, card)
    model = load(folder, parts=("vae", "text_encoder"))
    examples = encode_examples(in_order(source), model.encode_video, model.encode_text, BATCH_SIZE)
    if is_main():
        progress = tqdm(examples, desc="encode", total=len(source), unit="video", disable=None, dynamic_ncols=True)
        write_dataset(folder / "data", iter(progress), config.video.to_dict())
    else:
        deque(examples, maxlen=0)  # the devices of this process are needed for the encoding
    multihost_utils.sync_global_devices("encoded")


def _text_encoder(config: ConfigDict, folder: Path, source) -> Card:
    if is_main():
        write_word_tokenizer(folder / "tokenizer", (source[i]["caption"] for i in range(len(source))))
    multihost_utils.sync_global_devices("tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    sizes = config.text.network.to_dict() | {"vocab_size": len(tokenizer)}
    network = build(config.text.architecture, sizes)
    save_params(folder / "text_encoder", network.init(jax.random.key(config.seed)))
    part = {"architecture": config.text.architecture, "config": sizes, "path": "text_encoder", "item": ""}
    return {"text_encoder": part, "tokenizer": {"path": "tokenizer", "length": config.text.length}}
