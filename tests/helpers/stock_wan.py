"""A small Wan in the public format, made by the libraries that read it."""

import contextlib
import io
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from stock import T5, randomize, write_tokenizer
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
MEAN, DEVIATION = [-0.7571, 0.1075, 0.9653, -1.5517], [2.8184, 1.4541, 0.6123, 1.2196]
VAE = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": MEAN,
    "latents_std": DEVIATION,
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 4,
}
SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def make_transformer(dtype=torch.float32) -> WanTransformer3DModel:
    """A random transformer, with the parameters in float32 that diffusers keeps so."""
    transformer = randomize(WanTransformer3DModel(**TRANSFORMER))
    for name, parameter in transformer.named_parameters():
        if not set(name.split(".")) & set(WanTransformer3DModel._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    return transformer


def make_wan(folder: Path, dtype=torch.float32, shard: str = "5GB", scheduler=None, **index) -> None:
    """A random Wan in `folder`, written by diffusers and transformers.

    Args:
      scheduler: of diffusers; None: the public one.
      index: further components and settings of the pipeline.
    """
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer")
    transformer = make_transformer(dtype)
    text_encoder = UMT5EncoderModel(UMT5Config(**T5, feed_forward_proj="gated-gelu", dropout_rate=0.0))
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=randomize(text_encoder).to(dtype),
        vae=randomize(AutoencoderKLWan(**VAE), 0.3),
        transformer=transformer,
        scheduler=scheduler or UniPCMultistepScheduler(**SCHEDULER),
        **index,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline.save_pretrained(folder, max_shard_size=shard)
    # The public folder has SentencePiece's file too; the tokenizer reads either.
    (folder / "tokenizer" / "tokenizer.json").unlink()
