"""Repositories of the Hugging Face hub: the files that a conversion reads, in the hub's cache on this machine."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dollar_jax.card import COMPONENTS, REPOSITORY
from dollar_jax.convert import families
from dollar_jax.convert.import_lora import PEFT
from dollar_jax.convert.tensors import STEMS
from dollar_jax.data.text import FILES
from dollar_jax.errors import UserError

_FOLDERS = dict.fromkeys([*COMPONENTS, *(name for family in families.FAMILIES for name in family.folders)])
PLACES = ("", *(f"{name}/" for name in _FOLDERS))
# Nothing else is downloaded: no pickles, no code, no pictures, no data.
DESCRIPTIONS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{place}{name}" for place in ("", "tokenizer/") for name in FILES),
    *(f"{place}{name}" for place in PLACES for name in ("config.json", PEFT)),
    *(f"{place}{stem}.safetensors.index.json" for place in PLACES for stem in STEMS),
)
# Patterns, in which * also stands for slashes. Weights often lie beside the same in other dtypes. A LoRA is merged.
WEIGHTS = tuple(
    f"{place}{name}.safetensors"
    for place in PLACES
    for name in (*(name for stem in STEMS for name in (stem, f"{stem}-*")), "*lora*", "adapter_model")
)


def require_repository(name: str | os.PathLike) -> str:
    """`name` if it has the form of a repository's id, OWNER/NAME.

    Raises:
      UserError: it has not.
    """
    if not re.search(REPOSITORY, os.fspath(name)):
        raise UserError(
            f"{name} does not exist: name a file or a folder here, or a folder on the Hugging Face hub as OWNER/NAME"
        )
    return os.fspath(name)


def download(repository: str, revision: str, patterns: Sequence[str]) -> tuple[Path, str]:
    """Downloads files of a repository, except those that are in the cache already.

    The revision becomes a commit first, and all files are that commit's. Without a network, and with HF_HUB_OFFLINE=1,
    the commit is the one that the revision was at the last download.

    Args:
      repository: OWNER/NAME.
      revision: a branch, a tag or a commit.
      patterns: the files wanted, `DESCRIPTIONS` or more.
    Returns:
      The folder in the cache, which is missing if no file matches, and the commit, 40 hexadecimal digits.
    Raises:
      UserError: there is no such repository or revision, access is denied, or the hub cannot be reached and the cache
        lacks a file. Whole files are kept in the cache for the next time.
    """
    import huggingface_hub  # takes a second
    from huggingface_hub import errors
    from huggingface_hub.utils import logging, tqdm

    logging.disable_propagation()  # absl would print its warnings again
    again = "check the network and run the same command again; whole files are kept"
    wanted = {"revision": revision, "allow_patterns": list(patterns)}
    try:
        with _closed(tqdm) as bar:
            folder = huggingface_hub.snapshot_download(repository, tqdm_class=bar, **wanted)
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{repository}"
        raise UserError(f"{repository} is gated: accept its terms at {page}, and log in with hf auth login") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{repository} is neither a folder here nor a model that you may see on the Hugging Face hub: check the"
            " name, or log in with hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{repository} has no revision {revision!r:.100} on the Hugging Face hub, or has it no longer: name a"
            " branch, a tag or a commit"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if huggingface_hub.is_offline_mode():
            reason, again = "HF_HUB_OFFLINE is set", "unset it"
        else:
            reason = "the Hugging Face hub cannot be reached"
        raise UserError(
            f"{repository} is no folder here, its revision {revision!r:.100} is not whole in the cache, and {reason}:"
            f" {again}"
        ) from error
    except Exception as error:  # its libraries for HTTP and Xet raise exceptions of their own
        if getattr(error, "errno", None) is not None:  # of the disk
            raise
        # The text of an exception may quote a header, and with it the user's token.
        status = getattr(getattr(error, "response", None), "status_code", type(error).__name__)
        raise UserError(
            f"{repository} could not be downloaded from the Hugging Face hub ({status}): {again}"
        ) from error
    return Path(folder), Path(folder).name


@contextmanager
def _closed(bar: type) -> Iterator[type]:
    """Yields a class of progress bars that end with the block. The client leaves some open, and the next line that is
    printed would be written over them.
    """
    made = []

    class Bar(bar):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    try:
        yield Bar
    finally:
        for one in made:
            one.close()
