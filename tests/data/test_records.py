"""Sources: decoding, subsets, the cache, and what is held out."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from attn_flax.data import records
from attn_flax.data.records import Cached, Subset, decode_image, hold_out
from tests.data.sources import ArraySource, numbered


def encode(pixels, kind="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_decoding_keeps_grey_and_colour(tmp_path):
    grey = np.arange(35, dtype=np.uint8).reshape(7, 5)
    colour = np.arange(105, dtype=np.uint8).reshape(7, 5, 3)
    assert np.array_equal(decode_image(encode(grey)), grey[..., None])
    assert np.array_equal(decode_image(encode(colour)), colour)
    assert np.array_equal(decode_image(encode(grey), "RGB"), np.stack([grey] * 3, -1))
    (tmp_path / "a.png").write_bytes(encode(colour))
    assert np.array_equal(decode_image(tmp_path / "a.png"), colour)


def test_decoding_drops_transparency():
    colour = np.arange(140, dtype=np.uint8).reshape(7, 5, 4)
    assert np.array_equal(decode_image(encode(colour)), colour[..., :3])


def test_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="expected 8 bits per channel, got mode I;16"):
        decode_image(encode(np.ones((3, 3), np.uint16)))


def test_subset():
    source = numbered(20)
    subset = Subset(source, np.array([7, 3]))
    assert len(subset) == 2
    assert [record["image"][0, 0, 0] for record in (subset[0], subset[1])] == [7, 3]


class CountingSource(ArraySource):
    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(("limit", "reads"), [(4 * 15, 4), (4 * 15 - 1, 16)])
def test_cache_keeps_what_fits(monkeypatch, limit, reads):
    monkeypatch.setattr(records, "CACHE_BYTES", limit)
    monkeypatch.setattr(CountingSource, "reads", 0)
    plain = numbered(4)
    cached = Cached(CountingSource(plain.images.copy(), plain.labels))
    for index in [0, 1, 2, 3] * 2:
        assert np.array_equal(cached[index]["image"], plain[index]["image"])
        assert cached[index]["label"] == plain[index]["label"]
    assert CountingSource.reads == reads


def test_cached_images_cannot_be_changed():
    record = Cached(numbered(2))[0]
    with pytest.raises(ValueError, match="read-only"):
        record["image"][0] = 0


def test_the_cache_stays_in_its_process():
    cached = Cached(numbered(200))
    empty = len(pickle.dumps(cached))
    assert all(cached[index]["label"] == index % 10 for index in range(200))
    copy = pickle.loads(pickle.dumps(cached))
    assert len(pickle.dumps(cached)) == empty
    assert np.array_equal(copy[3]["image"], cached[3]["image"])


def test_hold_out_is_a_partition_of_the_right_size():
    kept, held = hold_out(37, 0.3)
    assert len(held) == 11
    assert sorted([*kept, *held]) == list(range(37))
    assert np.array_equal(held, hold_out(37, 0.3)[1])
    assert not np.array_equal(held, np.arange(11))


def test_hold_out_takes_the_share_of_each_label():
    labels = np.array([0] * 10 + [1] * 35 + [2] * 5)
    _, held = hold_out(50, 0.2, labels)
    assert np.bincount(labels[held]).tolist() == [2, 7, 1]
