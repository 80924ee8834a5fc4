"""HPSv2, PickScore and the aesthetic predictor against transformers, from real frames to the score; HPSv2 against
open_clip too where it is installed, which needs a torchvision built like PyTorch.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from optional import import_optional
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dollar_jax.convert.from_torch import from_torch
from dollar_jax.errors import UserError
from dollar_jax.evaluate.features.clip import clip
from dollar_jax.evaluate.measure import Clips, Metrics
from dollar_jax.rewards.clip import DEVIATION, MEAN, cropped, letterboxed
from dollar_jax.rewards.judge import Judge

CAPTIONS = ["a red ring moving left", "Two dogs, one cat & 3 birds; it's raining!", "very " * 90 + "long"]
SIZES = [(48, 80), (300, 262), (112, 224), (224, 224)]


def videos(height, width):
    """Different pictures with edges, gradients and noise, uint8 [3 2 h w 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    turns, shift = rng.uniform(-20, 20, (2, 3, 2, 3, 1, 1)), rng.uniform(0, 6, (3, 2, 3, 1, 1))
    picture = np.moveaxis(128 + 127 * np.sin(turns[0] * x + turns[1] * y + shift), 2, -1)
    picture[:, :, height // 3 : height // 2, width // 4 :] = rng.uniform(0, 255, (3, 2, 1, 1, 3))
    return np.clip(np.rint(picture + rng.normal(0, 20, picture.shape)), 0, 255).astype(np.uint8)


def images(video):
    return [Image.fromarray(frame) for frame in video.reshape(-1, *video.shape[2:])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where checkpoints are made, and a tokenizer of CLIP's kind, which spells every word."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(letters + [f"{letter}</w>" for letter in letters])}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def open_clip():
    return import_optional("open_clip")


def randomize(model):
    torch.manual_seed(0)
    return stock.randomize(model, 0.15)


@pytest.fixture(scope="module")
def transformers_model(folder):
    """As PickScore_v1, small."""
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**vision, "hidden_size": 48, "intermediate_size": 64, "eos_token_id": 49407, "hidden_act": "gelu"}
    vision |= {"patch_size": 14, "hidden_act": "gelu"}
    model = randomize(CLIPModel(CLIPConfig(projection_dim=32, vision_config=vision, text_config=text)))
    model.save_pretrained(folder / "torch")
    from_torch(folder / "torch", folder / "clip")
    return model


@pytest.fixture(scope="module")
def open_clip_model(folder, open_clip):
    """As HPS_v2.1_compressed.pt, small, with the tokenizer that comes with open_clip."""
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=14, image_size=224)
    text = open_clip.CLIPTextCfg(layers=1, width=64, heads=1)
    model = randomize(open_clip.CLIP(32, vision, text, output_dict=True))
    torch.save({"state_dict": model.state_dict()}, folder / "HPS.pt")
    from_torch(folder / "HPS.pt", folder / "hps")
    theirs = open_clip.tokenizer.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in theirs.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=list(theirs.bpe_ranks)).save_pretrained(folder / "hps" / "tokenizer")
    return model


def judge(name, **options):
    return Judge({"name": name, "options": {key: str(value) for key, value in options.items()}})


@pytest.fixture(scope="module")
def pickscore(folder, transformers_model):
    return judge("pickscore", checkpoint=folder / "clip", tokenizer=folder / "tokenizer")


def check(ours, theirs):
    """Scores of the videos against those of their six frames, which differ by much more than what is allowed."""
    theirs = np.asarray(theirs).reshape(3, 2).mean(1)
    assert np.ptp(theirs) > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def hps_transform(image):
    """Its ToTensor, ResizeMaxSize(224) and Normalize; torchvision resizes tensors by `interpolate`."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    height, width = x.shape[1:]
    scale = 224 / max(height, width)
    if scale != 1:
        size = [round(side * scale) for side in (height, width)]
        x = F.interpolate(x[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
        down, right = 224 - size[0], 224 - size[1]
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (x - mean) / deviation


@pytest.mark.parametrize("size", [(48, 80), (300, 262)])
def test_hpsv2(folder, transformers_model, size):
    video, model = videos(*size), transformers_model
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = tokenizer(CAPTIONS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        pixels = torch.stack([hps_transform(image) for image in images(video)])
        features = model.get_image_features(pixel_values=pixels).pooler_output
        texts = model.get_text_features(**text).pooler_output.repeat_interleave(2, 0)
    reward = judge("hpsv2", checkpoint=folder / "clip", tokenizer=folder / "tokenizer")
    check(reward(video, CAPTIONS), F.cosine_similarity(features, texts))


@pytest.mark.parametrize("size", [(48, 80), (300, 262)])
def test_hpsv2_of_open_clip(folder, open_clip, open_clip_model, size):
    video = videos(*size)
    tokens = open_clip.get_tokenizer("ViT-H-14")(CAPTIONS).repeat_interleave(2, 0)
    with torch.no_grad():
        found = open_clip_model(torch.stack([hps_transform(image) for image in images(video)]), tokens)
    theirs = torch.diagonal(found["image_features"] @ found["text_features"].T)
    check(judge("hpsv2", checkpoint=folder / "hps")(video, CAPTIONS), theirs)


@pytest.fixture(scope="module")
def picked(folder, transformers_model):
    """Computes the scores of frames, and their gradient at the images, as in the example of PickScore's authors."""
    processor, tokenizer = CLIPImageProcessorPil(), CLIPTokenizer.from_pretrained(folder / "tokenizer")

    def compute(video):
        model = transformers_model
        pixels = processor(images=images(video), return_tensors="pt")["pixel_values"].requires_grad_()
        text = tokenizer(CAPTIONS, padding=True, truncation=True, max_length=77, return_tensors="pt")
        image_embs = model.get_image_features(pixel_values=pixels).pooler_output
        image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
        text_embs = model.get_text_features(**text).pooler_output
        text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
        scores = model.logit_scale.exp() * (text_embs @ image_embs.T)
        scores = scores[torch.arange(3).repeat_interleave(2), torch.arange(6)]
        scores.sum().backward()
        return SimpleNamespace(scores=scores.detach().numpy(), gradient=pixels.grad)

    return compute


@pytest.mark.parametrize("size", [(48, 80), (300, 262)])
def test_pickscore(pickscore, picked, size):
    check(pickscore(videos(*size), CAPTIONS), picked(videos(*size)).scores)


def test_gradient_through_the_preprocessing(pickscore, picked):
    """PyTorch's from the images on, and back through its own resize: the rounding lets it through."""
    video = videos(48, 80)
    frames = torch.zeros(6, 3, 48, 80, requires_grad=True)
    resized = F.interpolate(frames, (224, 373), mode="bicubic", antialias=True)
    resized[..., 74 : 74 + 224].backward(picked(video).gradient / torch.tensor(DEVIATION)[:, None, None])
    wanted = frames.grad.numpy().transpose(0, 2, 3, 1).reshape(video.shape) / 2
    prepared = pickscore.prepare(CAPTIONS)
    gradient = jax.jit(jax.grad(lambda x, params: pickscore.score(x, prepared, params).sum()))
    ours = gradient(jnp.asarray(video / np.float32(255)), pickscore.params)
    assert np.abs(ours - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("size", SIZES)
def test_the_images_that_transformers_makes(size):
    video = videos(*size)
    wanted = CLIPImageProcessorPil()(images=images(video), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    frames = jnp.asarray(video.reshape(-1, *size, 3) / np.float32(255))
    levels = 255 * np.array(DEVIATION) * np.abs(jax.jit(cropped, static_argnums=1)(frames, 224) - wanted)
    assert levels.max() < 1.01
    assert (levels > 0.01).mean() < 5e-4


def test_bars_are_black():
    white = np.asarray(letterboxed(jnp.ones((1, 48, 80, 3)), 224)) * DEVIATION + MEAN
    top = (224 - 134) // 2
    np.testing.assert_allclose(white[:, top : top + 134], 1, atol=1e-5)
    np.testing.assert_allclose(white[:, :top], 0, atol=1e-6)
    np.testing.assert_allclose(white[:, top + 134 :], 0, atol=1e-6)


def test_aesthetic(folder, transformers_model):
    head = randomize(torch.nn.Linear(32, 1))
    torch.save(head.state_dict(), folder / "linear.pth")
    from_torch(folder / "linear.pth", folder / "head")
    video = videos(48, 80)
    pixels = CLIPImageProcessorPil()(images=images(video), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = transformers_model.get_image_features(pixel_values=pixels).pooler_output
        theirs = head(F.normalize(features, dim=-1))[:, 0]
    reward = judge("aesthetic", clip=folder / "clip", head=folder / "head")
    assert reward.prepare(CAPTIONS) == {}
    check(reward(video, CAPTIONS), theirs)


def test_the_metric_and_the_features_are_transformers_too(folder, transformers_model):
    """CLIPSIM is what PickScore multiplies by its scale; features of a frame are what its cosine is taken of."""
    video, model = videos(48, 80), transformers_model
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = tokenizer(CAPTIONS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    pixels = CLIPImageProcessorPil()(images=images(video), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        frames = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output).numpy()
        texts = F.normalize(model.get_text_features(**text).pooler_output).numpy()
    np.testing.assert_allclose(clip(video[:, 0], weights=str(folder / "clip")), frames[::2], atol=1e-3)
    options = {"checkpoint": str(folder / "clip"), "tokenizer": str(folder / "tokenizer"), "key_frames": 1}
    clips = Clips(video, np.zeros((3, 1, 1, 1, 1), np.float32), CAPTIONS)
    values = Metrics({"clipsim": options}).fit(None)(clips)
    assert values == pytest.approx({"clipsim": 100 * np.mean(np.sum(frames[::2] * texts, axis=1))}, abs=0.02)
    features = {"features": "clip", "weights": str(folder / "clip"), "key_frames": 2}
    metrics = Metrics({"vendi": features, "frechet": features})
    assert [column.key for column in metrics.columns] == ["vendi_clip", "vendi_clip_std", "frechet_clip"]
    doubled = Clips(np.repeat(clips.pixels, 2, axis=0), np.repeat(clips.latents, 2, axis=0), [*CAPTIONS, *CAPTIONS])
    assert 1 < metrics.fit(doubled)(doubled)["vendi_clip"] < 2
    with pytest.raises(UserError, match=r"metric vendi: the features clip need weights: a CLIP, converted by"):
        Metrics({"vendi": {"features": "clip"}})
    with pytest.raises(UserError, match=r"metric clipsim: its options do not fit \(missing a required argument: 'chec"):
        Metrics({"clipsim": {}})


def test_half_precision(folder, pickscore):
    """Of matrices, not of the scale."""
    reward = judge("pickscore", checkpoint=folder / "clip", tokenizer=folder / "tokenizer", dtype="bfloat16")
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(reward.params)}
    assert dtypes == {"bfloat16", "float32"}
    assert reward.params["logit_scale"] == pickscore.params["logit_scale"]
    text, wanted = (x.prepare(CAPTIONS)["text"] for x in (reward, pickscore))
    assert 1e-4 < np.abs(text - wanted).max() < 0.05


def test_user_errors(folder, transformers_model):
    with pytest.raises(UserError, match=r"reward hpsv2: .*tokenizer: no tokenizer here"):
        judge("hpsv2", checkpoint=folder / "clip")
    with pytest.raises(UserError, match=r"reward hpsv2: .*no checkpoint here"):
        judge("hpsv2", checkpoint=folder / "nothing", tokenizer=folder / "tokenizer")
    with pytest.raises(UserError, match=r"reward aesthetic: .*clip holds no aesthetic: make it with python -m"):
        judge("aesthetic", clip=folder / "clip", head=folder / "clip")
    with pytest.raises(UserError, match=r"options do not fit \(missing a required argument: 'checkpoint'\)"):
        judge("pickscore")
