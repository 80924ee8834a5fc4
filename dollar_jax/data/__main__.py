"""Turns video files and their captions into a dataset (TFDS, ArrayRecord) that the training configs read.

    python -m dollar_jax.data --videos=DIR --captions=captions.jsonl --out=DIR --config=configs/dollar.py
    python -m dollar_jax.data ... --frames=49 --height=480 --width=720 --fps=8
    python -m dollar_jax.data ... --encode --teacher=CHECKPOINT

captions.jsonl has a line {"file": "cat.mp4", "caption": "a cat asleep on a piano"} for each
file, in the folder --videos. Videos are mp4, mov, webm, mkv, avi, gif, mpg, ts, flv, ogg or wmv;
png, jpg, webp and bmp images become videos of one frame. The first --frames frames of each video
at --fps are kept, scaled to cover --height x --width and cropped around the middle. With
--encode, the teacher's VAE and text encoder turn them into latents and text embeddings. The names
of the files are kept: config.data.held_out chooses by them what training never reads. A command
that was stopped goes on from OUT.unfinished, whose pieces have 1,024 files each.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dollar_jax.cli import required, run
from dollar_jax.errors import UserError

MOST = 100_000  # largest size that a model's card accepts

_VIDEOS = flags.DEFINE_string("videos", None, "Folder of the files.")
_CAPTIONS = flags.DEFINE_string("captions", None, "captions.jsonl.")
_OUT = flags.DEFINE_string("out", None, "Folder to write, which must not exist yet.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Takes the sizes below from config.video.")
_SIZE = {
    "frames": flags.DEFINE_integer("frames", None, "Frames of a video.", lower_bound=1, upper_bound=MOST),
    "height": flags.DEFINE_integer("height", None, "Pixels.", lower_bound=1, upper_bound=MOST),
    "width": flags.DEFINE_integer("width", None, "Pixels.", lower_bound=1, upper_bound=MOST),
    "fps": flags.DEFINE_float("fps", None, "Frames a second.", lower_bound=0.001, upper_bound=1000),
}
_SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Leave out, and name, files that cannot be decoded or are too short.")
_ENCODE = flags.DEFINE_bool("encode", False, "Store latents and text embeddings.")
_TEACHER = flags.DEFINE_string("teacher", None, "Checkpoint whose networks encode.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Videos that each device encodes at a time.", lower_bound=1)


def main() -> None:
    required(_VIDEOS, _CAPTIONS, _OUT)
    if _ENCODE.value != bool(_TEACHER.value):
        raise UserError("--encode and --teacher=CHECKPOINT go together")
    out = Path(_OUT.value)
    if out.exists():
        raise UserError(f"{out} exists already: remove it or choose another --out")
    size = _size()

    from dollar_jax.data.clips import open_clips, read_captions

    records = read_captions(_CAPTIONS.value, _VIDEOS.value)
    source = open_clips(records, _VIDEOS.value, size, _SKIP_BAD.value)

    # These take seconds to import, so wrong input is refused first.
    from dollar_jax.data.pieces import open_pieces, write_pieces
    from dollar_jax.data.pipeline import in_order

    info = size | {"encoded_by": _TEACHER.value} if _ENCODE.value else size
    with _mesh() if _ENCODE.value else nullcontext():
        make, networks = _encoding() if _ENCODE.value else (in_order, "")
        clips = [part.origin(index) for part in source.parts for index in range(len(part))]
        pieces = open_pieces(out, source, [f"{clip} {info} {networks}" for clip in clips])
        count = write_pieces(out, pieces, make, info, "data")
    print(f"{out}: {count} of {len(records)} files written")


def _size() -> dict[str, float | int]:
    """Sizes from the flags, and from the config for flags that are not given."""
    config = _CONFIG.value.video if _CONFIG.value else {}
    size = {name: config.get(name) if flag.value is None else flag.value for name, flag in _SIZE.items()}
    if missing := [f"--{name}" for name, value in size.items() if value is None]:
        raise UserError(f"give {', '.join(missing)}, or --config=FILE for all sizes")
    return size


def _mesh():
    """The context in which all devices of this machine share the work; the text encoder is split over them."""
    import jax

    from dollar_jax.sharding import local_mesh

    return jax.set_mesh(local_mesh())


def _encoding() -> tuple[Callable, str]:
    """The function that encodes some rows of a source, and the digests of its networks."""
    import jax

    from dollar_jax.checkpoint import digest
    from dollar_jax.data.encoding import encode
    from dollar_jax.data.pipeline import in_order
    from dollar_jax.pipeline import load

    parts, size = ("vae", "text_encoder"), _BATCH_SIZE.value * jax.device_count()
    model = load(_TEACHER.value, parts=parts)

    def make(rows):
        return encode(in_order(rows), model.encode_video, model.encode_text, size)

    return make, " ".join(digest(_TEACHER.value, model.card[part]) for part in parts)


if __name__ == "__main__":
    run(main)
