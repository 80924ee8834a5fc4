"""A Wan folder of diffusers, through our checkpoints and back, and what both libraries make of the same one."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stock_wan
import torch
from commands import ROOT, run
from compare import relative
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from folders import assert_half_the_memory_for_the_same_bits, assert_same_tensors
from safetensors.numpy import load_file, save_file

from dollar_jax import checkpoint, pipeline, sampling
from dollar_jax.convert import wan_dit
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.tensors import open_folder
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.diffusion import make_schedule
from dollar_jax.errors import UserError

COMPONENTS = ("transformer", "vae", "text_encoder")
PROMPTS = ["a cat  asleep on a piano", "a red ring &amp; the sun"]  # both to be cleaned
SIZE = {"frames": 9, "height": 16, "width": 32, "fps": 8, "independent_chunk": 0}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and diffusers among themselves
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def folders(wan_folder, tmp_path_factory) -> tuple[Path, Path]:
    """A stock pipeline in float32 and what we make of it, at a small size."""
    folder = tmp_path_factory.mktemp("wan")
    from_torch(wan_folder, folder / "ours")
    card = pipeline.at_size(checkpoint.read_card(folder / "ours"), SIZE)
    checkpoint.write_card(folder / "ours", card)
    return wan_folder, folder / "ours"


def assert_same_folders(ours: Path, theirs: Path) -> None:
    """The same tensors bit for bit, the same descriptions."""
    for name in COMPONENTS:
        assert_same_tensors(ours / name, theirs / name)
        assert json.loads((ours / name / "config.json").read_text()) == json.loads(
            (theirs / name / "config.json").read_text()
        )
    indices = [json.loads((folder / "model_index.json").read_text()) for folder in (theirs, ours)]
    assert {k: v for k, v in indices[0].items() if k != "_diffusers_version"} == indices[1]


def stock_latents(
    pipe: WanPipeline, noise: np.ndarray, steps: int, guidance: float, negative=None, **more
) -> np.ndarray:
    """What the stock pipeline makes of noise [b f h w c], in the same layout."""
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        latents = pipe(
            PROMPTS,
            negative_prompt=negative,
            num_inference_steps=steps,
            guidance_scale=guidance + 1,
            num_frames=SIZE["frames"],
            height=SIZE["height"],
            width=SIZE["width"],
            latents=torch.tensor(noise).permute(0, 4, 1, 2, 3),
            output_type="latent",
            **more,
        ).frames
    return latents.permute(0, 2, 3, 4, 1).numpy()


def our_latents(model: pipeline.Pipeline, noise: np.ndarray, told: tuple, steps: int, guidance) -> np.ndarray:
    _, keys = pipeline.draw_noise(model.card, 0, len(noise), 1)
    _, params = model.networks["transformer"]
    return np.asarray(model.sampler(params, noise, *told, keys, model.times(steps), guidance))


def noise_of(model: pipeline.Pipeline) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *model.card["latent_shape"])).astype(np.float32)


def test_there_and_back_bit_for_bit(folders, tmp_path):
    theirs, ours = folders
    to_torch(ours, tmp_path / "back")
    assert_same_folders(tmp_path / "back", theirs)
    scheduler = json.loads((theirs / "scheduler" / "scheduler_config.json").read_text())
    back = json.loads((tmp_path / "back" / "scheduler" / "scheduler_config.json").read_text())
    assert back.items() <= scheduler.items()


def test_bfloat16_in_shards_there_and_back(tmp_path):
    """As the pipeline is used: norms, tables and the embedding of the time stay float32."""
    stock_wan.make_wan(tmp_path / "stock", torch.bfloat16, "20KB")
    from_torch(tmp_path / "stock", tmp_path / "ours")
    to_torch(tmp_path / "ours", tmp_path / "back")
    assert_same_folders(tmp_path / "back", tmp_path / "stock")
    tensors = open_folder(tmp_path / "back" / "transformer")
    assert {str(tensors[key].dtype) for key in tensors} == {"float32", "bfloat16"}


def test_the_names_of_the_authors_there_and_back(folders, tmp_path, monkeypatch):
    """As diffusers itself renames them, also with ComfyUI's prefix; a head of the small folder is 12 wide, not 128."""
    monkeypatch.setattr(wan_dit, "HEAD", stock_wan.TRANSFORMER["attention_head_dim"])
    to_torch(folders[1], tmp_path / "original", original=True)
    tensors = load_file(tmp_path / "original" / "model.safetensors")
    renamed = convert_wan_transformer_to_diffusers({key: torch.tensor(value) for key, value in tensors.items()})
    theirs = open_folder(folders[0] / "transformer")
    assert renamed.keys() == theirs.keys()
    for key, value in renamed.items():
        np.testing.assert_array_equal(value.numpy(), theirs[key])
    prefixed = {f"model.diffusion_model.{key}": value for key, value in tensors.items()}
    save_file(prefixed, tmp_path / "comfy.safetensors")
    from_torch(tmp_path / "comfy.safetensors", tmp_path / "again")
    to_torch(tmp_path / "again", tmp_path / "back")
    assert_same_tensors(tmp_path / "back", folders[0] / "transformer")


def test_the_card_says_what_the_folder_says(folders):
    card = checkpoint.read_card(folders[1])
    assert card["schedule"] == {"kind": "flow", "steps": 1000, "shift": 3.0, "spacing": "unipc"}
    assert (card["prediction_type"], card["sampler"], len(card["times"])) == ("flow", "unipc", 50)
    assert card["tokenizer"] == {"path": "tokenizer", "length": 512, "clean": True}
    assert card["negative_prompt"].startswith("色调艳丽")
    assert card["guidance"] == 4
    assert card["vae"]["shift_factor"] == stock_wan.MEAN
    assert card["vae"]["scaling_factor"] == [1 / x for x in stock_wan.DEVIATION]
    assert card["latent_shape"] == [5, 4, 8, 4]


@pytest.fixture(scope="module")
def model(folders) -> pipeline.Pipeline:
    return pipeline.load(folders[1])


def test_large_weights_in_bfloat16(folders):
    assert_half_the_memory_for_the_same_bits(folders[1], PROMPTS)


@pytest.fixture(scope="module")
def told(model) -> tuple:
    """The prompts' condition, and that of a negative prompt."""
    return model.encode_text(PROMPTS), model.encode_text(["a green sea"])


@pytest.mark.parametrize(("solver", "shift", "steps"), [(None, None, 50), ("unipc1", 5.0, 7), ("euler", 8.0, 7)])
def test_the_same_noise_is_the_same_video(folders, model, told, solver, shift, steps):
    """With guidance and a negative prompt, by the folder's solver and others."""
    pipe = WanPipeline.from_pretrained(folders[0], torch_dtype=torch.float32)
    if solver == "euler":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    elif solver:
        order = 1 if solver == "unipc1" else 2
        settings = stock_wan.SCHEDULER | {"flow_shift": shift, "solver_order": order}
        pipe.scheduler = UniPCMultistepScheduler(**settings)
    noise = noise_of(model)
    ours = replace(model, card=pipeline.with_solver(model.card, solver, shift))
    latents = our_latents(ours, noise, told, steps, 3.0)
    wanted = stock_latents(pipe, noise, steps, 3.0, "a green sea")
    assert relative(latents, wanted) < 1e-3
    assert np.std(wanted) > 0.1
    if solver is None:
        with torch.inference_mode():
            mean, deviation = (torch.tensor(pipe.vae.config[f"latents_{x}"]).view(-1, 1, 1, 1) for x in ("mean", "std"))
            video = pipe.vae.decode(torch.tensor(wanted).permute(0, 4, 1, 2, 3) * deviation + mean).sample
        frames = pipe.video_processor.postprocess_video(video, output_type="np")
        assert np.abs(model.decode(latents) / 255.0 - frames).mean() < 1 / 255
        assert np.std(frames) > 0.05


def test_two_experts(tmp_path):
    """As 2.2's A14B: another transformer and another guidance for low noise."""
    settings = stock_wan.SCHEDULER | {"flow_shift": 12.0}
    second = {"transformer_2": stock_wan.make_transformer(), "boundary_ratio": 0.875}
    stock_wan.make_wan(tmp_path / "stock", scheduler=UniPCMultistepScheduler(**settings), **second)
    from_torch(tmp_path / "stock", tmp_path / "ours")
    to_torch(tmp_path / "ours", tmp_path / "back")
    for name in (*COMPONENTS, "transformer_2"):
        assert_same_tensors(tmp_path / "back" / name, tmp_path / "stock" / name)
    card = pipeline.at_size(checkpoint.read_card(tmp_path / "ours"), SIZE)
    assert card["low_guidance"] == {"guidance": 2.0, "below": 875.0}
    model = replace(pipeline.load(tmp_path / "ours"), card=card)
    assert min(model.times(7)) < 875 < max(model.times(7))
    assert model.guidance == (3.0, 2.0, 875.0)
    told = model.encode_text(PROMPTS), model.encode_text([""])
    noise = noise_of(model)
    pipe = WanPipeline.from_pretrained(tmp_path / "back", torch_dtype=torch.float32)
    wanted = stock_latents(pipe, noise, 7, 3.0, guidance_scale_2=3.0)
    assert relative(our_latents(model, noise, told, 7, model.guidance), wanted) < 1e-3

    shutil.rmtree(tmp_path / "stock" / "transformer_2")
    with pytest.raises(UserError, match="transformer_2 is missing: this WanPipeline has an expert for low noise there"):
        from_torch(tmp_path / "stock", tmp_path / "again")


@pytest.fixture(scope="module")
def student(folders, tmp_path_factory) -> Path:
    """A student of the stock pipeline's teacher before its first update: only samplers are compared."""
    work = tmp_path_factory.mktemp("distilled")
    fields = {
        "teacher.path": folders[1],
        "stages": "('encode','distill')",
        "data.clips": 4,
        "video.height": SIZE["height"],
        "generator.iterations": 0,
        "generator.batch_size": 1,
        "generator.show_every": 0,
        "held_out.videos_per_caption": 0,
    }
    flags = [f"--config={ROOT / 'tests/helpers/one_student.py'}:shapes_wan.vsd_cd", "--workdir=W"]
    flags += [f"--config.{name}={value}" for name, value in fields.items()]
    done = run(["main", *flags], cwd=work)
    assert done.returncode == 0, done.stderr
    return work / "W" / "vsd_cd"


@pytest.mark.parametrize(
    ("spacing", "sampler"),
    [("unipc", "ddim"), ("unipc", "renoise"), ("stretched", "ddim"), ("stretched", "renoise"), ("trailing", "renoise")],
)
def test_a_student_in_the_stock_pipeline(student, told, tmp_path, monkeypatch, spacing, sampler):
    """Two numbers of steps, deterministic and re-noising, from the exported folder alone.

    UniPC cuts a time to an integer, so a student of its times is trained with integers. A stock scheduler has one
    number of steps where it re-noises, our own has as few as divide the student's.
    """
    schedule = {"kind": "flow", "steps": 1000, "shift": 5.0, "spacing": spacing}
    card, made = checkpoint.read_card(student), 0
    for count in (4, 1) if spacing == "stretched" else (4,):
        times = make_schedule(**schedule).spaced(count)
        folder = tmp_path / f"student{count}"
        shutil.copytree(student, folder)
        checkpoint.write_card(folder, card | {"schedule": schedule, "sampler": sampler, "times": list(times)})
        to_torch(folder, tmp_path / f"stock{count}")
        own = (tmp_path / f"stock{count}" / "scheduler" / "dollar_scheduler.py").exists()
        assert own == (spacing == "trailing" or (spacing, sampler) == ("unipc", "renoise"))
        options = {"trust_remote_code": True} if own else {}
        pipe = WanPipeline.from_pretrained(tmp_path / f"stock{count}", torch_dtype=torch.float32, **options)
        ours = pipeline.load(folder, ("transformer",))
        noise = noise_of(ours)
        _, keys = pipeline.draw_noise(ours.card, 0, len(noise), 1)
        for steps in (count,) if spacing == "stretched" else (4, 2):
            drawn = [sampling.normal(sampling.fold(keys, step), noise.shape[1:]) for step in range(steps)]

            def same_noise(shape, drawn=drawn, **options):
                return torch.tensor(np.asarray(drawn.pop(0))).permute(0, 4, 1, 2, 3)

            monkeypatch.setattr(sys.modules[type(pipe.scheduler).__module__], "randn_tensor", same_noise, raising=False)
            wanted = stock_latents(pipe, noise, steps, 0.0)
            assert relative(our_latents(ours, noise, told, steps, 0.0), wanted) < 1e-3
            made += 1
    assert made == 2
