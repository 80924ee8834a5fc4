"""Folders in the public format, through our checkpoints and back, and what both libraries make of the same one."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import stock
import torch
from commands import ROOT, run
from compare import relative
from diffusers import CogVideoXPipeline
from folders import assert_half_the_memory_for_the_same_bits, assert_same_tensors
from lora_student import pipe_of_readme
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from dollar_jax import checkpoint, pipeline
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.errors import UserError

COMPONENTS = ("transformer", "vae", "text_encoder")
SHARDED = {"dtype": torch.bfloat16, "shard": "20KB", "transformer": stock.ROTARY}
PROMPTS = ["a cat asleep on a piano", "a red ring"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and diffusers among themselves
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module", params=["float32", "bfloat16, sharded"])
def folders(request, plain, tmp_path_factory) -> tuple[Path, Path]:
    """A stock pipeline and what we make of it."""
    folder, source = tmp_path_factory.mktemp("convert"), plain
    if request.param != "float32":
        source = folder / "stock"
        stock.make_pipeline(source, **SHARDED)
    from_torch(source, folder / "ours")
    return source, folder / "ours"


def stock_pipeline(folder: Path, **options) -> CogVideoXPipeline:
    pipe = CogVideoXPipeline.from_pretrained(folder, torch_dtype=torch.float32, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def stock_latents(pipe: CogVideoXPipeline, noise: np.ndarray, steps: int, guidance: float) -> np.ndarray:
    """What the stock pipeline makes of noise [b f h w c], in the same layout."""
    height, width = 8 * noise.shape[2], 8 * noise.shape[3]
    latents = pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance + 1,
        num_frames=4 * (noise.shape[1] - lead(noise)) - 3,
        height=height,
        width=width,
        latents=torch.tensor(noise).permute(0, 1, 4, 2, 3),
        max_sequence_length=stock.TEXT_LENGTH,
        output_type="latent",
    ).frames
    return latents.permute(0, 1, 3, 4, 2).numpy()


@torch.inference_mode()
def stock_frames(pipe: CogVideoXPipeline, latents: np.ndarray) -> np.ndarray:
    """The stock pipeline's videos in 0..1 of latents [b f h w c]."""
    decoded = pipe.decode_latents(torch.tensor(latents[:, lead(latents) :]).permute(0, 1, 4, 2, 3))
    return pipe.video_processor.postprocess_video(decoded, output_type="np")


def lead(latents: np.ndarray) -> int:
    """CogVideoX 1.5 has a latent frame in front that is not decoded."""
    return int(latents.shape[1] % 2 == 0)


def our_latents(folder: Path, noise: np.ndarray) -> np.ndarray:
    model = pipeline.load(folder, ("transformer", "text_encoder"))
    _, keys = pipeline.draw_noise(model.card, 0, len(noise), 1)
    params = model.networks["transformer"][1]
    return np.asarray(model.sampler(params, noise, model.encode_text(PROMPTS), None, keys, model.times(None), 0.0))


def test_there_and_back_bit_for_bit(folders, tmp_path):
    theirs, ours = folders
    to_torch(ours, tmp_path / "back")
    for name in COMPONENTS:
        assert_same_tensors(tmp_path / "back" / name, theirs / name)
        before, after = (
            json.loads((folder / name / "config.json").read_text()) for folder in (theirs, tmp_path / "back")
        )
        assert before == after
    indices = [json.loads((folder / "model_index.json").read_text()) for folder in (theirs, tmp_path / "back")]
    assert {k: v for k, v in indices[0].items() if k != "_diffusers_version"} == indices[1]


def test_the_card_says_what_the_folder_says(plain, tmp_path):
    scheduler = {"snr_shift_scale": 1.0, "prediction_type": "sample", "beta_schedule": "linear", "beta_end": 0.02}
    path = plain / "scheduler" / "scheduler_config.json"
    source = tmp_path / "source"
    shutil.copytree(plain, source)
    (source / "scheduler" / "scheduler_config.json").write_text(json.dumps(json.loads(path.read_text()) | scheduler))
    card = from_torch(source, tmp_path / "ours")
    assert card == checkpoint.read_card(tmp_path / "ours") | {"times": card["times"]}
    assert card["prediction_type"] == "x0"
    assert card["schedule"] == {
        "kind": "ddpm",
        "steps": 1000,
        "betas": "linear",
        "beta_start": 0.00085,
        "beta_end": 0.02,
        "zero_snr": True,
        "snr_shift": 1.0,
    }
    assert card["times"] == tuple(range(19, 1000, 20))
    assert card["tokenizer"]["length"] == stock.TEXT_LENGTH
    assert card["video"] == {"frames": 9, "height": 32, "width": 48, "fps": 8, "independent_chunk": 0}
    assert card["latent_shape"] == [3, 4, 6, 4]
    assert card["vae"]["scaling_factor"] == stock.VAE["scaling_factor"]


def test_large_weights_in_bfloat16(folders):
    assert_half_the_memory_for_the_same_bits(folders[1], PROMPTS)


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder", "clip"])
def test_one_network_alone(plain, tmp_path, name):
    source = plain / name
    if name == "clip":
        source = tmp_path / "clip"
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision, text = sizes | {"image_size": 8, "patch_size": 4}, sizes | {"vocab_size": 30, "eos_token_id": 29}
        stock.randomize(CLIPModel(CLIPConfig(vision_config=vision, text_config=text))).save_pretrained(source)
        # Older files have buffers too.
        tensors = load_file(source / "model.safetensors")
        positions = {"text_model.embeddings.position_ids": np.arange(77)[None]}
        save_file(tensors | positions, source / "model.safetensors", metadata={"format": "pt"})
    card = from_torch(source, tmp_path / "ours")
    assert card["role"] == name
    to_torch(tmp_path / "ours", tmp_path / "back")
    if name == "clip":
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        CLIPModel.from_pretrained(tmp_path / "back")
    assert_same_tensors(tmp_path / "back", source)


def test_files_without_a_config(tmp_path):
    """An aesthetic predictor as LAION's and a CLIP as HPSv2's; old and new pickles."""
    head = torch.nn.Linear(768, 1)
    torch.save(head.state_dict(), tmp_path / "head.pth", _use_new_zipfile_serialization=False)
    card = from_torch(tmp_path / "head.pth", tmp_path / "head")
    network, params = checkpoint.load_component(tmp_path / "head", card["aesthetic"])
    x = np.random.default_rng(0).normal(size=(3, 768)).astype(np.float32)
    ratings = network.apply(params, jnp.asarray(x))
    np.testing.assert_allclose(ratings, head(torch.tensor(x)).detach()[:, 0], rtol=1e-4, atol=1e-5)

    theirs = stock.OpenClip(30, 8)
    wrapped = {"epoch": 3, "state_dict": theirs.to(torch.bfloat16).state_dict()}
    torch.save(wrapped, tmp_path / "clip.pt")
    card = from_torch(tmp_path / "clip.pt", tmp_path / "clip")
    _, params = checkpoint.load_component(tmp_path / "clip", card["clip"])
    kernel = params["text"]["project"]["kernel"]
    assert kernel.dtype == "bfloat16"
    np.testing.assert_array_equal(np.asarray(kernel, np.float32), theirs.text_projection.detach().float())

    save_file({"weights": x}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no open_clip model, no aesthetic predictor and no Wan"):
        from_torch(tmp_path / "x.safetensors", tmp_path / "x")


@pytest.mark.parametrize("change", [{}, stock.ROTARY | {"patch_size_t": 2}], ids=["2B", "1.5"])
def test_the_same_noise_is_the_same_video(change, tmp_path):
    """50 steps of DDIM with guidance from the command line, beside the stock pipeline: latents and mp4 files."""
    from dollar_jax.data.video import read_video, write_video

    stock.make_pipeline(tmp_path / "stock", transformer=change)
    card = from_torch(tmp_path / "stock", tmp_path / "ours")
    noise = np.random.default_rng(0).normal(size=(2, *card["latent_shape"])).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    flags = {"checkpoint": "ours", "prompts": "prompts.txt", "out": "out", "noise": "noise.npy", "guidance": 2.0}
    words = ["sample", "--save_latents", "--tiled", *(f"--{name}={value}" for name, value in flags.items())]
    done = run(words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pipe = stock_pipeline(tmp_path / "stock")
    latents = stock_latents(pipe, noise, 50, 2.0)
    frames = stock_frames(pipe, latents)
    for video in range(2):
        ours = np.load(tmp_path / "out" / f"{video:05d}-0.npy")
        assert relative(ours, latents[video]) < 1e-3
        assert np.std(latents[video]) > 0.1
        write_video(tmp_path / "stock.mp4", np.asarray(pipeline.to_uint8(frames[video])), 8)
        files = tmp_path / "out" / f"{video:05d}-0.mp4", tmp_path / "stock.mp4"
        ours, theirs = (read_video(file)[0].astype(float) for file in files)
        assert np.abs(ours - theirs).mean() < 1


@pytest.fixture(scope="module")
def student(plain, tmp_path_factory):
    """A few iterations of the command on a teacher of the stock pipeline, which predicts a conjugate; beside it an
    `adapter`.
    """
    folder = tmp_path_factory.mktemp("student")
    from_torch(plain, folder / "teacher")
    card = checkpoint.read_card(folder / "teacher")
    checkpoint.write_card(folder / "teacher", card | {"prediction_type": "conjugate"})
    fields = {
        "teacher.path": "teacher",
        "stages": "('encode','distill')",
        "data.clips": 8,
        "generator.iterations": 3,
        "generator.batch_size": 4,
        "generator.optimizer.learning_rate": 1e-2,  # so that the averaged and the raw student are far apart
        "generator.optimizer.warmup": 1,
        "generator.objectives.variational_score": 0.0,
        "generator.rollout": "data",
        "generator.show_every": 0,
        "held_out.videos_per_caption": 0,
    }
    flags = [f"--config={ROOT / 'tests/helpers/one_student.py'}:shapes.vsd_cd+3", "--workdir=W"]
    flags += [f"--config.{name}={value}" for name, value in fields.items()]
    done = run(["main", *flags], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "W" / "vsd_cd"


@pytest.mark.parametrize("prediction_type", ["v", "conjugate"])
def test_a_student_distilled_here_samples_there(student, tmp_path, prediction_type):
    """Both the averaged and the raw student; the same weights also make a student of the other type."""
    student = shutil.copytree(student, tmp_path / "ours")
    card = checkpoint.read_card(student) | {"prediction_type": prediction_type}
    checkpoint.write_card(student, card)
    noise = np.random.default_rng(0).normal(size=(2, *card["latent_shape"])).astype(np.float32)
    latents = {}
    for item in ("ema", "student"):
        exported = tmp_path / item
        to_torch(student, exported, item)
        own = (exported / "scheduler" / "dollar_scheduler.py").exists()
        assert own == (prediction_type == "conjugate")
        assert ("trust_remote_code" in (exported / "README.md").read_text()) == own
        options = {"trust_remote_code": True} if own else {}
        latents[item] = stock_latents(stock_pipeline(exported, **options), noise, len(card["times"]), 0.0)
    assert relative(our_latents(student, noise), latents["ema"]) < 1e-3
    assert relative(latents["student"], latents["ema"]) > 1e-2


def test_a_trained_adapter_samples_there(student, plain, monkeypatch):
    """Loaded into the original folder by the README's code."""
    adapter = student.with_name("adapter")
    noise = np.random.default_rng(0).normal(size=(2, *checkpoint.read_card(adapter)["latent_shape"])).astype(np.float32)
    wanted = our_latents(adapter, noise)
    to_torch(adapter, student.with_name("LORA"))
    (student.parent / "BASE").symlink_to(plain)
    pipe = pipe_of_readme(student.with_name("LORA"), monkeypatch)
    assert relative(stock_latents(pipe, noise, 4, 0.0), wanted) < 1e-3
    pipe.set_adapters("student", 0.0)
    assert relative(stock_latents(pipe, noise, 4, 0.0), wanted) > 0.01  # it has learnt something
