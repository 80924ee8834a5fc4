"""Packages that the tests do without on Python 3.11, see tests/requirements.txt: from 3.12 on a missing one fails."""

import importlib
import sys

import pytest


def import_optional(name: str):
    """The module, or a skip that names it."""
    if sys.version_info >= (3, 12):
        return importlib.import_module(name)
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: its torchvision is not built like this PyTorch
        pytest.skip(f"{name} cannot be imported: {error}")
