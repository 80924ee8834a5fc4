import json

import pytest

from dollar_jax import card
from dollar_jax.convert.wan_vae import config, scale, their_config, their_scale
from dollar_jax.errors import UserError

# fmt: off
MEAN_21 = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
]
STD_21 = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
]
MEAN_22 = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]
STD_22 = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]
# fmt: on
# The config.json of the public models.
PUBLIC = {
    "2.1": {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": "0.33.0.dev0",
        "attn_scales": [],
        "base_dim": 96,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "latents_mean": MEAN_21,
        "latents_std": STD_21,
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    },
    "2.2": {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": "0.35.0.dev0",
        "attn_scales": [],
        "base_dim": 160,
        "clip_output": False,
        "decoder_base_dim": 256,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "in_channels": 12,
        "is_residual": True,
        "latents_mean": MEAN_22,
        "latents_std": STD_22,
        "num_res_blocks": 2,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
        "temperal_downsample": [False, True, True],
        "z_dim": 48,
    },
}


@pytest.mark.parametrize("version", PUBLIC)
def test_config_there_and_back(version):
    public = PUBLIC[version]
    back = their_config(config(public)) | {"latents_mean": public["latents_mean"], "latents_std": public["latents_std"]}
    notes = {name: public[name] for name in public if name.startswith("_") or name == "clip_output"}
    added = (
        {}
        if version == "2.2"
        else {
            **{"decoder_base_dim": None, "is_residual": False, "patch_size": None, "in_channels": 3, "out_channels": 3},
            **{"scale_factor_temporal": 4, "scale_factor_spatial": 8},
        }
    )
    assert json.loads(json.dumps(back | notes)) == public | added


def test_sizes_of_chunks_are_no_part_of_the_network():
    assert their_config(config(PUBLIC["2.1"]) | {"encode_chunk": 8, "decode_chunk": None}) == their_config({})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"attn_scales": [0.5]}, r"attn_scales = \[0.5\]: only \[\]"),
        ({"dropout": 0.1}, "dropout"),
        ({"in_channels": 4}, "in_channels = 4: only 3"),
        ({"out_channels": 12}, "out_channels"),
        ({"patch_size": 2}, "in_channels = 3: only 12"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial = 16: only 8"),
        ({"temperal_downsample": [False, False, True]}, "scale_factor_temporal = 4: only 2"),
        ({"z_dim": "16"}, "z_dim"),
        ({"dim_mult": [1, 0.5, 4, 4]}, "dim_mult"),
        ({"base_dim": None}, "base_dim"),
    ],
)
def test_config_of_something_else(change, fault):
    with pytest.raises(UserError, match=fault):
        config(PUBLIC["2.1"] | change)


def test_config_lacks_a_size():
    with pytest.raises(UserError, match="'z_dim' is a required property; is it the VAE of Wan"):
        config({name: value for name, value in PUBLIC["2.1"].items() if name != "z_dim"})


@pytest.mark.parametrize("version", PUBLIC)
def test_scale_there_and_back(version):
    public = PUBLIC[version]
    part = {"architecture": "wan_vae", "config": config(public), "path": "vae", "item": ""} | scale(public)
    card.check({"role": "vae", "vae": part}, "the card")
    assert part["scaling_factor"][3] * public["latents_std"][3] == pytest.approx(1, rel=1e-15)
    assert part["shift_factor"] == public["latents_mean"]
    back = their_scale(json.loads(json.dumps(part)))
    assert json.dumps(back) == json.dumps({name: public[name] for name in ("latents_mean", "latents_std")})


def test_reciprocals_that_are_not_their_own_inverse():
    # 0.499 and 0.4944 of the public 2.2 are among them.
    short = [n / 10_000 for n in range(1, 40_000)]
    assert all(1 / (1 / x) != x for x in (0.499, 0.4944))
    part = {"config": {"z_dim": len(short)}, "scaling_factor": [1 / x for x in short]}
    assert their_scale(part)["latents_std"] == short


def test_a_number_is_the_scale_of_all_channels():
    part = {"config": {"z_dim": 3}, "scaling_factor": 4.0, "shift_factor": 0.5}
    assert their_scale(part) == {"latents_mean": [0.5] * 3, "latents_std": [0.25] * 3}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"latents_std": STD_21[:15]}, "16 means and 15 deviations for 16 channels"),
        ({"latents_mean": MEAN_22}, "48 means and 16 deviations"),
        ({"latents_std": [0.0] * 16}, "latents_std"),
        ({"latents_mean": None}, "latents_mean"),
    ],
)
def test_scale_that_is_none(change, fault):
    with pytest.raises(UserError, match=fault):
        scale(PUBLIC["2.1"] | change)
