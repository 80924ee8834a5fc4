"""Parity with torchvision's Inception v3, fed as the vendi-score package feeds it; weights drawn at random.

torchvision must be built like PyTorch, and registries have it for CUDA only: it is no requirement of these tests.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from optional import import_optional
from PIL import Image
from safetensors.torch import save_file

from dollar_jax.convert import inception as keys
from dollar_jax.convert.tensors import open_file
from dollar_jax.errors import UserError
from dollar_jax.evaluate.features import inception as features
from dollar_jax.evaluate.features.inception import inception

SIDE = 75  # the smallest that the network takes: as good for parity, and fast


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(features, "SIDE", SIDE)


@pytest.fixture(scope="module")
def torchvision():
    for name in ("models", "transforms"):
        import_optional(f"torchvision.{name}")
    return import_optional("torchvision")


@pytest.fixture(scope="module")
def frames():
    """Four pictures of very different kinds, not square."""
    random = np.random.default_rng(0)
    sizes = [(33, 20), (4, 3), (130, 80), (2, 2)]
    small = [Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for size in sizes]
    return np.stack([np.asarray(picture.resize((130, 80))) for picture in small])


@pytest.fixture(scope="module")
def images(torchvision, frames):
    """The package's way to the network's input."""
    transforms = torchvision.transforms
    steps = transforms.Compose([transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor()])
    return torch.stack([steps(Image.fromarray(frame)) for frame in frames])


@pytest.fixture(scope="module")
def original(torchvision, images):
    torch.manual_seed(0)
    model = torchvision.models.inception_v3(weights=None, transform_input=True, init_weights=False).eval()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:  # as they come out of training
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(images)
    for norm in norms:  # four pictures leave some variances tiny: they would magnify the rounding
        norm.running_var += 0.3 * norm.running_var.mean()
    return model.eval()


@pytest.fixture(scope="module")
def weights(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception_v3.pth"
    torch.save(original.state_dict(), path)
    return str(path)


def test_features_are_those_of_torchvision(original, images, frames, weights):
    theirs = []
    hook = original.avgpool.register_forward_hook(lambda module, inputs, pooled: theirs.append(pooled[:, :, 0, 0]))
    with torch.no_grad():
        original(images)
    hook.remove()
    ours = inception(frames, weights)
    differences = np.std(theirs[0].numpy() - theirs[0].numpy()[::-1])
    assert differences > 0.1
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-3 * differences, rtol=0)


def test_of_both_kinds_of_file_the_same_tensors_are_taken(original, weights, tmp_path):
    save_file(
        {key: value for key, value in original.state_dict().items() if "AuxLogits" not in key},  # as timm's
        tmp_path / "model.safetensors",
    )
    theirs, ours = (keys.select(open_file(path)) for path in (Path(weights), tmp_path / "model.safetensors"))
    assert theirs.keys() == ours.keys()
    assert len(ours) == 94 * 5  # convolutions, and four tensors of each one's norm
    assert (ours["Mixed_7c.branch_pool.bn.running_var"] == theirs["Mixed_7c.branch_pool.bn.running_var"]).all()


def test_other_files_are_refused(frames, tmp_path):
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "fid.pth")
    with pytest.raises(UserError, match="weights of FID"):
        inception(frames, str(tmp_path / "fid.pth"))
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "cut.pth")
    with pytest.raises(UserError, match="nothing fills Mixed_7c/branch_pool/bias"):
        inception(frames, str(tmp_path / "cut.pth"))
    with pytest.raises(UserError, match="needs --weights"):
        inception(frames)
