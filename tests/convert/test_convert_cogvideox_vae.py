import pytest

from dollar_jax.convert.cogvideox_vae import FIXED, SIZES, config, their_scale
from dollar_jax.errors import UserError

PUBLIC = dict.fromkeys(SIZES, 4) | FIXED | {"scaling_factor": 1.15258426, "_class_name": "AutoencoderKLCogVideoX"}


def test_config_keeps_sizes_alone():
    assert config(PUBLIC) == dict.fromkeys(SIZES, 4)


def test_config_of_something_else():
    with pytest.raises(UserError, match="lacks latent_channels, norm_eps"):
        config({name: 4 for name in SIZES if name not in ("norm_eps", "latent_channels")})


@pytest.mark.parametrize("change", [{"use_quant_conv": True}, {"use_post_quant_conv": True}, {"act_fn": "relu"}])
def test_config_with_layers_that_we_lack(change):
    with pytest.raises(UserError, match=next(iter(change))):
        config(PUBLIC | change)


@pytest.mark.parametrize("part", [{"scaling_factor": [1.0, 2.0]}, {"scaling_factor": 1.0, "shift_factor": [0.0, 0.1]}])
def test_scales_of_other_pipelines(part):
    with pytest.raises(UserError, match="one factor only"):
        their_scale(part)
    assert their_scale({"scaling_factor": 0.7, "shift_factor": 0}) == {"scaling_factor": 0.7}
