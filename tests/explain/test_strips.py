"""Strips of frames: what their figure holds, read off the layouts of maps over one video."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from attn_flax.checks import InputError
from attn_flax.explain import attention_maps, draw_strip
from attn_flax.explain.layouts import read_strip
from attn_flax.explain.strips import strip_figure
from attn_flax.models import create_model

T, H, W = 3, 8, 12


def random(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def titles(figure):
    return [strip._suptitle.get_text() for strip in figure.subfigs]


def shown(ax):
    """The array on top of an axes."""
    return np.asarray(ax.get_images()[-1].get_array())


def test_attention_over_frames_is_averaged_over_positions_and_heads():
    for shape in ((1, 2, 5, 4, T, T), (1, 4, T, T)):
        weights = random(*shape)
        (reading,) = read_strip(weights, T, H, W).items()
        assert reading[0] == "over frames"
        np.testing.assert_allclose(reading[1], weights.reshape(-1, T, T).sum(0) / weights[..., 0, 0].size, rtol=1e-6)


def test_attention_within_frames_is_read_frame_by_frame():
    weights = random(1, T, 4, 6, 6)  # of 2×3 positions
    readings = read_strip(weights, T, H, W)
    assert list(readings) == ["mean received", "from the centre"]
    for t in range(T):
        expected = weights[0, t].reshape(-1, 6).sum(0).reshape(2, 3) / 24
        np.testing.assert_allclose(readings["mean received"][t], expected, rtol=1e-6)
    with_token = read_strip(random(1, T, 4, 7, 7), T, H, W)
    assert list(with_token) == ["mean received", "from the class token"]


def test_as_many_frames_as_positions_are_told_apart():
    assert list(read_strip(random(1, 6, 4, 6, 6), 6, H, W)) == ["mean received", "from the centre"]
    assert list(read_strip(random(1, 2, 3, 4, 6, 6), 6, H, W)) == ["over frames"]
    assert read_strip(random(1, 5, 2, 7), 6, H, W) == {}


def test_the_figure_has_a_row_for_each_reading_and_a_column_for_each_frame():
    frames, spatial, temporal, gate = (
        random(T, H, W, 3),
        random(1, T, 2, 6, 6),
        random(1, 2, 3, 2, T, T),
        random(1, T, 5),
    )
    maps = {
        "blocks.0.attn": {"spatial": spatial, "temporal": temporal},
        "blocks.0.attn.time": temporal,  # a part of the one before
        "gate": jnp.asarray(gate, jnp.bfloat16),
        "odd": random(1, 2),
    }
    figure = strip_figure(frames, maps)
    assert titles(figure) == [
        "frames",
        "blocks.0.attn spatial mean received",
        "blocks.0.attn spatial from the centre",
        "blocks.0.attn temporal over frames",
        "gate weight of each channel",
    ]
    pictures, received, _, over_frames, channels = (strip.axes[:T] for strip in figure.subfigs)
    for t in range(T):
        np.testing.assert_array_equal(shown(pictures[t]), frames[t])
        np.testing.assert_allclose(shown(received[t]), spatial[0, t].mean((0, 1)).reshape(2, 3), rtol=1e-6)
        heights = [bar.get_height() for bar in over_frames[t].patches]
        np.testing.assert_allclose(heights, temporal[0].mean((0, 1, 2))[t], rtol=1e-6)
        colours = [bar.get_facecolor() for bar in over_frames[t].patches]
        assert [colour != colours[t] for colour in colours] == [u != t for u in range(T)]
        np.testing.assert_allclose([bar.get_height() for bar in channels[t].patches], gate[0, t], rtol=1e-2)
    assert received[0].get_images()[-1].get_clim() == received[1].get_images()[-1].get_clim()


@pytest.mark.full
def test_the_png_shows_a_networks_attention(tmp_path):
    sizes = {"in_channels": 1, "embed_dim": 8, "depth": 1, "num_heads": 2}
    network = create_model("timesformer", num_classes=3, **sizes, rngs=nnx.Rngs(0))
    frames = random(4, 16, 24, 1)
    maps = attention_maps(network, jnp.asarray(frames)[None])
    assert [title.split(" ", 1)[1] for title in titles(strip_figure(frames, maps))[1:]] == [
        "spatial mean received",
        "spatial from the centre",
        "temporal over frames",
    ]
    draw_strip(frames * 2 - 1, maps, tmp_path / "strip.png", mean=[0.5], std=[0.5])
    assert np.asarray(Image.open(tmp_path / "strip.png").convert("L")).std() > 10


def test_without_maps_there_are_the_frames(tmp_path):
    assert titles(strip_figure(random(2, H, W, 1), {})) == ["frames"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [(random(0, H, W, 1), "frames must hold at least one frame"), (random(H, W, 1), r"must be \(b, h, w, c\)")],
)
def test_refusals(frames, message):
    with pytest.raises(InputError, match=message):
        strip_figure(frames, {})
