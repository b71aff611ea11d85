"""Videos out of files and folders, prepared as a data set's."""

import numpy as np
import pytest
from PIL import Image

from attn_flax.checks import InputError
from attn_flax.data import CorruptRecordError, read_clip

VIDEO = np.random.default_rng(0).integers(0, 256, (7, 6, 10, 3), np.uint8)
FORMAT = {"shape": (6, 10, 3), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def write_folder(path):
    path.mkdir()
    for index, frame in enumerate(VIDEO):
        Image.fromarray(frame).save(path / f"{index:02}.png")
    return path


def write_file(path, **options):
    first, *others = map(Image.fromarray, VIDEO)
    first.save(path, save_all=True, append_images=others, **options)
    return path


def standardised(video):
    return (video / 255 - FORMAT["mean"]) / FORMAT["std"]


@pytest.mark.parametrize("write", [lambda p: write_folder(p / "frames"), lambda p: write_file(p / "video.png")])
@pytest.mark.parametrize(("frames", "stride", "taken"), [(7, 1, range(7)), (3, 2, (1, 3, 5)), (2, 6, (0, 6))])
def test_frames_come_from_the_middle_of_a_file_or_a_folder(tmp_path, write, frames, stride, taken):
    clip = read_clip(write(tmp_path), frames=frames, stride=stride, **FORMAT)
    assert clip.dtype == np.float32
    np.testing.assert_allclose(clip, standardised(VIDEO[list(taken)]), atol=1e-5)


def test_the_last_frame_of_a_short_video_is_repeated(tmp_path):
    clip = read_clip(write_folder(tmp_path / "frames"), frames=5, stride=2, **FORMAT)
    np.testing.assert_allclose(clip, standardised(VIDEO[[0, 2, 4, 6, 6]]), atol=1e-5)


@pytest.mark.parametrize(("suffix", "options", "within"), [("webp", {"lossless": True}, 0.03), ("gif", {}, 1.5)])
def test_animated_formats(tmp_path, suffix, options, within):
    """GIF has 256 colours a frame: enough for these frames, but for its own rounding."""
    clip = read_clip(write_file(tmp_path / f"video.{suffix}", **options), frames=7, stride=1, **FORMAT)
    assert np.abs(clip - standardised(VIDEO)).mean() < within


def test_a_clip_gets_the_datas_size_and_channels(tmp_path):
    path = write_folder(tmp_path / "frames")
    clip = read_clip(path, frames=2, stride=1, shape=(4, 4, 1), mean=(0.5,), std=(0.25,))
    assert clip.shape == (2, 4, 4, 1)
    grey = np.asarray(Image.fromarray(VIDEO[2]).convert("L")).mean() / 255
    assert abs(clip[0].mean() - (grey - 0.5) / 0.25) < 0.5


def test_what_cannot_be_read_is_named(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "broken.gif").write_bytes(b"no video")
    for name in ("empty", "broken.gif", "missing.gif"):
        with pytest.raises(CorruptRecordError, match=f"video .*{name} cannot be read"):
            read_clip(tmp_path / name, frames=2, stride=1, **FORMAT)
    with pytest.raises(InputError, match="frames must be at least 1, got 0"):
        read_clip(tmp_path / "empty", frames=0, stride=1, **FORMAT)
