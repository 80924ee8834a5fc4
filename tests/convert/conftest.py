from pathlib import Path

import pytest
import stock


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """A random CogVideoX in float32, as diffusers writes it; to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("plain") / "stock"
    stock.make_pipeline(folder)
    return folder
