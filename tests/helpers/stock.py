"""Small folders in the public format, made by the libraries that read it."""

import contextlib
import io
import json
from collections import OrderedDict
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


class OpenClip(torch.nn.Module):
    """A small model of open_clip's modules: one matrix for queries, keys and values, and projections [in, out]."""

    def __init__(self, vocabulary: int, length: int):
        super().__init__()

        def blocks(width, heads, layers):
            def block():
                attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
                mlp = {
                    "c_fc": torch.nn.Linear(width, 90),
                    "gelu": torch.nn.GELU(),
                    "c_proj": torch.nn.Linear(90, width),
                }
                norms = {name: torch.nn.LayerNorm(width) for name in ("ln_1", "ln_2")}
                return torch.nn.ModuleDict({**norms, "attn": attn, "mlp": torch.nn.Sequential(OrderedDict(mlp))})

            return torch.nn.ModuleDict({"resblocks": torch.nn.ModuleList([block() for _ in range(layers)])})

        visual = self.visual = torch.nn.Module()
        visual.conv1 = torch.nn.Conv2d(3, 128, 4, stride=4, bias=False)
        visual.class_embedding = torch.nn.Parameter(torch.empty(128))
        visual.positional_embedding = torch.nn.Parameter(torch.empty(10, 128))
        visual.ln_pre, visual.ln_post = torch.nn.LayerNorm(128), torch.nn.LayerNorm(128)
        visual.transformer = blocks(128, 2, 3)
        visual.proj = torch.nn.Parameter(torch.empty(128, 12))
        self.token_embedding = torch.nn.Embedding(vocabulary, 64)
        self.positional_embedding = torch.nn.Parameter(torch.empty(length, 64))
        self.transformer = blocks(64, 1, 2)
        self.ln_final = torch.nn.LayerNorm(64)
        self.text_projection = torch.nn.Parameter(torch.empty(64, 12))
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2)

    @staticmethod
    def run(blocks, x, mask=None):
        for block in blocks["resblocks"]:
            y = block["ln_1"](x)
            x = x + block["attn"](y, y, y, need_weights=False, attn_mask=mask)[0]
            x = x + block["mlp"](block["ln_2"](x))
        return x

    def encode_image(self, images):
        visual = self.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
        return visual.ln_post(self.run(visual.transformer, visual.ln_pre(x))[:, 0]) @ visual.proj

    def encode_text(self, tokens):
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        x = self.run(self.transformer, self.token_embedding(tokens) + self.positional_embedding, mask)
        return self.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection
