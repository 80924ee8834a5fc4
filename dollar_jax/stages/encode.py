"""Encodes the videos and captions once, into `workdir/encoded`: training runs neither VAE nor text encoder.

Prompts alone go to `workdir/encoded_prompts`. Both are written in pieces: a run that is stopped goes on with the piece
that it was at.
"""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.card import Card
from dollar_jax.checkpoint import bring, digest, read_card, save_params, write_card
from dollar_jax.data.dataset import Example, open_dataset, write_dataset
from dollar_jax.data.encoding import caption_batch, encode_captions
from dollar_jax.data.encoding import encode as encode_examples
from dollar_jax.data.pieces import open_pieces, origin_of, write_pieces
from dollar_jax.data.pipeline import Rows, in_order
from dollar_jax.data.prompts import count_prompts, stream_prompts
from dollar_jax.data.text import load_tokenizer, write_word_tokenizer
from dollar_jax.distributed import is_main
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.models import build
from dollar_jax.pipeline import at_size, load
from dollar_jax.progress import Progress
from dollar_jax.sharding import batch_shares
from dollar_jax.stages.common import DONE, PROMPTS, piece_of, prompts_alone, video_source

PIECE = 8192  # prompts; a stopped run loses the work on one piece at most


def encode(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """Writes latents and text embeddings of `config.data`.

    The networks are those of the teacher at `config.teacher.path`; without it, the VAE of this run and a random text
    encoder for the words in the captions.
    """
    shares = batch_shares(mesh)  # all devices share every batch
    if prompts_alone(config):
        _encode_prompts(config, workdir / PROMPTS, caption_batch(shares))
        return
    folder = workdir / "encoded"
    if (folder / "data").exists():
        return
    source = video_source(config)
    if "latents" in source[0]:  # already encoded by `python -m dollar_jax.data --encode`
        return
    pieces = open_pieces(folder / "data", source, [_origin(config, workdir)] * len(source))
    multihost_utils.sync_global_devices("pieces")  # every process has looked before one writes
    if config.teacher.path:
        card = bring(read_card(config.teacher.path), config.teacher.path, folder)
    else:
        card = bring(read_card(workdir / "vae"), workdir / "vae", folder, ("vae",))
        card |= _text_encoder(config, folder, source)
    card = at_size({"role": "vae"} | card, config.video.to_dict())
    write_card(folder, card)
    model = load(folder, parts=("vae", "text_encoder"))
    size = config.data.get("encode_batch_size", 1) * shares

    def make(rows: Rows) -> Iterator[Example]:
        return encode_examples(in_order(rows), model.encode_video, model.encode_text, size)

    write_pieces(folder / "data", pieces, make, config.video.to_dict(), "encode", writes=is_main())
    multihost_utils.sync_global_devices("encoded")


def _origin(config: ConfigDict, workdir: Path) -> str:
    """What the encoded videos are made from, beside the config: the dataset and the networks at their paths."""
    place, parts = config.teacher.path, ("vae", "text_encoder")
    if not place:
        place, parts = workdir / "vae", ("vae",)
    card = read_card(place)
    dataset = origin_of(config.data.path) if config.data.path else ""
    return " ".join([dataset, *(digest(place, card[part]) for part in parts)])


def _encode_prompts(config: ConfigDict, folder: Path, batch_size: int) -> None:
    """Writes the text embeddings of the prompts in a file, each piece as a dataset of its own.

    Raises:
      UserError: the file has changed since some of its prompts were encoded.
    """
    if (folder / DONE).exists():
        return
    file = config.data.prompts
    total, prompts = count_prompts(file), stream_prompts(file)
    pieces = -(-total // PIECE)
    there = {number for number in range(pieces) if piece_of(folder, number).exists()}
    multihost_utils.sync_global_devices("pieces")  # every process has looked before one writes
    model = load(config.teacher.path, parts=("text_encoder",))
    progress = Progress("encode", "prompt", total, sum(min(PIECE, total - number * PIECE) for number in there))
    for number in range(pieces):
        captions, place = list(itertools.islice(prompts, PIECE)), piece_of(folder, number)
        told = hashlib.sha256("\n".join(captions).encode()).hexdigest()
        if number in there:
            if open_dataset(place).info.get("captions") != told:
                raise UserError(f"{file} has changed since {place} was encoded from it: take another --workdir")
            continue
        examples = encode_captions(captions, model.encode_text, batch_size)
        if is_main():
            write_dataset(place, progress.over(examples), {"captions": told})
        else:
            deque(examples, maxlen=0)  # the devices of this process are needed for the encoding
    if is_main():
        write_atomically(folder / DONE, json.dumps({"pieces": pieces, "prompts": total}) + "\n")
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
