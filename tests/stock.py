"""Small folders in the public format, made by the libraries that read it."""

import contextlib
import io
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from transformers import AutoTokenizer, T5Config, T5EncoderModel

TEXT_LENGTH = 12
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 24,
    "num_layers": 2,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 9,
    "max_text_seq_length": TEXT_LENGTH,
}
ROTARY = {"use_rotary_positional_embeddings": True}
VAE = {
    "block_out_channels": (8, 8, 8, 16),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
}
T5 = {"vocab_size": 64, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
SCHEDULER = {  # the content of the public 2B's file
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "clip_sample": False,
}


def randomize(model: torch.nn.Module, scale: float = 0.2) -> torch.nn.Module:
    """Random weights everywhere, biases and norms too."""
    for parameter in model.requires_grad_(False).parameters():
        centre = float(parameter.mean()) if parameter.ndim == 1 else 0.0
        torch.nn.init.normal_(parameter, centre, scale)
    return model.eval()


def write_tokenizer(folder: Path) -> None:
    """T5's format: a SentencePiece model and a config."""
    import sentencepiece

    sentences = ["a cat asleep on a piano", "a red ring moving left", "the sun sets over a green sea"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"} | special))


def make_pipeline(folder: Path, dtype=torch.float32, shard: str = "5GB", transformer=(), scheduler=()) -> None:
    """A random CogVideoX in `folder`, written by diffusers and transformers."""
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer")
    levels = len(VAE["block_out_channels"])
    vae = AutoencoderKLCogVideoX(
        **VAE,
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
    )
    text_encoder = T5EncoderModel(T5Config(**T5, feed_forward_proj="gated-gelu", dropout_rate=0.0))
    pipeline = CogVideoXPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=randomize(text_encoder).to(dtype),
        vae=randomize(vae, 0.1).to(dtype),
        transformer=randomize(CogVideoXTransformer3DModel(**TRANSFORMER | dict(transformer))).to(dtype),
        scheduler=CogVideoXDDIMScheduler(**SCHEDULER | dict(scheduler)),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline.save_pretrained(folder, max_shard_size=shard)
    # The public folder has SentencePiece's file alone.
    (folder / "tokenizer" / "tokenizer.json").unlink()
