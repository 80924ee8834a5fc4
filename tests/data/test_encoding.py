import jax
import numpy as np

from dollar_jax.data.encoding import caption_batch, encode, from_columns, to_columns
from dollar_jax.types import Condition


def examples(count, frames=5):
    return [{"video": np.full((frames, 2, 2, 3), i, np.uint8), "caption": f"{frames} {i}"} for i in range(count)]


class Networks:
    """Latents are the mean of each frame, texts the length of the caption; remembers the shapes it was called with."""

    def __init__(self):
        self.videos, self.captions = [], []

    def encode_video(self, video):
        self.videos.append(video.shape)
        return video.mean((2, 3), keepdims=True)

    def encode_text(self, captions):
        self.captions.append(len(captions))
        text = np.array([[[len(caption)]] for caption in captions], np.float32)
        pooled = text[:, 0]
        return Condition(text, np.ones(text.shape[:2], bool), {"pooled": pooled})


def test_each_example_gets_its_own_encoding():
    networks = Networks()
    encoded = list(encode(examples(7), networks.encode_video, networks.encode_text, 3))
    assert [example["caption"] for example in encoded] == [f"5 {i}" for i in range(7)]
    for index, example in enumerate(encoded):
        np.testing.assert_array_equal(example["latents"], np.full((5, 1, 1, 3), index, np.float32))
        assert example["text"] == example["text_extra_pooled"] == len(example["caption"])
        assert {name: value.dtype.name for name, value in example.items() if name != "caption"} == {
            "latents": "float32",
            "text": "float16",
            "text_mask": "bool",
            "text_extra_pooled": "float16",
        }


def test_the_name_of_a_file_stays():
    networks = Networks()
    named = [example | {"file": f"{i}.mp4"} for i, example in enumerate(examples(4))]
    encoded = list(encode(named, networks.encode_video, networks.encode_text, 3))
    assert [(example["caption"], example["file"]) for example in encoded] == [(f"5 {i}", f"{i}.mp4") for i in range(4)]


def test_networks_see_one_batch_size():
    """Captions come in larger batches than videos, which need more memory."""
    networks = Networks()
    list(encode(examples(40), networks.encode_video, networks.encode_text, 3))
    assert networks.videos == [(3, 5, 2, 2, 3)] * 14
    assert networks.captions == [33, 33]
    assert [caption_batch(unit) for unit in (1, 8, 12, 32, 40)] == [32, 32, 36, 32, 40]


def test_videos_and_images_are_not_mixed():
    networks = Networks()
    encoded = list(encode(examples(4) + examples(3, frames=1), networks.encode_video, networks.encode_text, 3))
    assert [shape[1] for shape in networks.videos] == [5, 5, 1]
    assert [example["caption"] for example in encoded] == ["5 0", "5 1", "5 2", "5 3", "1 0", "1 1", "1 2"]


def test_encoding_waits_until_it_is_asked():
    def endless():
        while True:
            yield from examples(1)

    networks = Networks()
    next(encode(endless(), networks.encode_video, networks.encode_text, 2))
    assert len(networks.videos) == 1


def test_columns_are_a_condition_again():
    """Also for a batch of a dataset, whose other columns stay; an example without embeddings stays as it is."""
    condition = Networks().encode_text(["a", "bcd"])
    again = from_columns({"latents": 1, "caption": "c", **to_columns(condition)})
    assert again.keys() == {"latents", "caption", "condition"}
    assert jax.tree.all(jax.tree.map(np.array_equal, again["condition"], condition))
    assert from_columns({"video": 1}) == {"video": 1}
