from pathlib import Path

import pytest
import stock
import stock_wan


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """A random CogVideoX in float32, as diffusers writes it; to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("plain") / "stock"
    stock.make_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory) -> Path:
    """A random Wan in float32, as diffusers writes it; to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("wan") / "stock"
    stock_wan.make_wan(folder)
    return folder
