"""The pictures: what their figures hold, and that the PNGs show it."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from attn_flax.checks import InputError
from attn_flax.explain import draw_attention_maps, draw_confusion_matrix, draw_learning_curves
from attn_flax.explain.charts import confusion_figure, learning_curves_figure
from attn_flax.explain.pictures import attention_figure

RECORDS = [
    {"step": 3, "epoch": 0.5, "split": "train", "loss": 2.0, "accuracy": 0.25},
    {"step": 6, "epoch": 1.0, "split": "train", "loss": 1.5, "accuracy": 0.5},
    {"step": 6, "epoch": 1.0, "split": "validation", "loss": 1.75, "accuracy": 0.375},
    {"step": 6, "epoch": 1.0, "split": "test", "loss": 1.0, "accuracy": 0.5},
]


def random(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def read_png(path):
    return np.asarray(Image.open(path).convert("RGB"), np.int16)


def shown(ax):
    """The array that an axes shows as an image."""
    (image,) = ax.get_images()
    return np.asarray(image.get_array())


def axes_by_title(figure):
    return {ax.get_title(): ax for ax in figure.axes if ax.get_title()}


def test_attention_figure_has_a_column_for_each_reading():
    maps = {
        "blocks.2.gate": jnp.asarray(random(2, 7, 5, 6), jnp.bfloat16),
        "blocks.10.article": random(2, 35, 35),
        "": {"channel": random(2, 8), "space": random(2, 7, 5, 1)},
        "odd": random(2, 1, 9, 2, 3),
    }
    figure = attention_figure(random(2, 14, 10, 3), maps)
    assert list(axes_by_title(figure)) == [
        "input",
        "blocks.2.gate\nmean over channels",
        "blocks.10.article\nmean received",
        "blocks.10.article\nfrom the centre",
        "network channel\nweight of each channel",
        "network space\nmean over channels",
        "odd",
    ]
    assert [ax.get_xlabel() for ax in figure.axes].count("channel") == 1
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == ["no picture for\n(2, 1, 9, 2, 3)"] * 2


def test_attention_figure_shows_the_values():
    images, gate, channels = random(2, 6, 6, 3), random(2, 3, 3, 4), random(2, 5)
    figure = attention_figure(images, {"gate": gate, "channels": channels})
    grid = np.array(figure.axes[:9]).reshape(3, 3)
    for i in range(2):
        np.testing.assert_array_equal(shown(grid[i, 0]), images[i])
        np.testing.assert_allclose(shown(grid[i, 1]), gate[i].sum(-1) / 4, rtol=1e-6)
        (bars,) = grid[i, 2].patches
        np.testing.assert_array_equal(bars.get_data().values, channels[i])
    assert grid[0, 1].get_images()[0].get_clim() == grid[1, 1].get_images()[0].get_clim()


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_standardised_images_show_the_original(channels):
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, channels), np.uint8)
    mean, std = random(channels), 0.5 + random(channels, seed=1)
    maps = {"gate": random(1, 2, 2, 1)}
    for given, kwargs in ((images, {}), ((images / 255 - mean) / std, {"mean": mean.tolist(), "std": std})):
        drawn = shown(axes_by_title(attention_figure(given, maps, **kwargs))["input"])
        np.testing.assert_allclose(drawn.reshape(images[0].shape), images[0] / 255, atol=1e-6)


def test_the_png_changes_where_the_map_does(tmp_path):
    images, gate = random(1, 8, 8, 3), random(1, 8, 8, 1)
    flipped = gate.copy()
    flipped[0, :4] = flipped[0, 3::-1]  # the upper half upside down
    pictures = []
    for weights in (gate, flipped):
        draw_attention_maps(images, {"gate": weights}, tmp_path / "maps.png")
        pictures.append(read_png(tmp_path / "maps.png"))
    rows, columns = np.nonzero(np.abs(pictures[0] - pictures[1]).sum(-1))
    height, width = pictures[0].shape[:2]
    assert columns.min() > 0.45 * width
    assert rows.min() < 0.3 * height
    assert rows.max() < 0.6 * height
    assert len(rows) > 0.05 * height * width


def test_constant_maps_are_drawn(tmp_path):
    maps = {"gate": np.ones((1, 4, 4, 1)), "channels": np.zeros((1, 5)), "tokens": np.full((1, 16, 16), 1 / 16)}
    draw_attention_maps(random(1, 4, 4, 1), maps, tmp_path / "maps.png")
    assert read_png(tmp_path / "maps.png").std() > 10


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        (
            random(8, 8, 3),
            {"a": random(8, 4)},
            r"images must be \(b, h, w, c\) with 1 or 3 channels, got .*\(8, 8, 3\)",
        ),
        (random(2, 8, 8, 4), {"a": random(2, 4)}, r"1 or 3 channels, got shape \(2, 8, 8, 4\)"),
        (random(2, 8, 8, 3) - 0.5, {"a": random(2, 4)}, r"images must be in \[0, 1\]; .* give the mean and std"),
        (random(0, 8, 8, 3), {"a": random(0, 4)}, "at least one image"),
        (random(2, 8, 8, 3), {}, "at least one map"),
    ],
)
def test_attention_figure_refuses(images, maps, message):
    with pytest.raises(InputError, match=message):
        attention_figure(images, maps)


def test_learning_curves_hold_the_records():
    loss, accuracy = learning_curves_figure(iter(RECORDS)).axes
    assert (loss.get_xlabel(), loss.get_ylabel(), accuracy.get_ylabel()) == ("epoch", "loss", "accuracy")
    curves = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
    assert curves == {"train": [[0.5, 2.0], [1.0, 1.5]], "validation": [[1.0, 1.75]]}
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.25, 0.5], [0.375]]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "validation"]


def test_a_metric_without_records_has_no_panel():
    (loss,) = learning_curves_figure([{"epoch": 1.0, "split": "train", "loss": 2.0}]).axes
    assert loss.get_title() == "Loss"
    with pytest.raises(InputError, match="records must hold one of loss, accuracy"):
        learning_curves_figure([])


def test_the_learning_curves_png_is_in_the_colours_of_the_splits(tmp_path):
    draw_learning_curves(RECORDS, tmp_path / "curves.png")
    pixels = read_png(tmp_path / "curves.png")
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels == color).all(-1).sum() > 50


def test_confusion_matrix_shows_counts_and_shares():
    ax = confusion_figure([[6, 2, 0], [0, 0, 0], [1, 0, 1234]], ["cat", "dog", "eel"]).axes[0]
    np.testing.assert_allclose(shown(ax), [[0.75, 0.25, 0], [0, 0, 0], [1 / 1235, 0, 1234 / 1235]])
    numbers = {text.get_position(): text.get_text() for text in ax.texts}
    assert numbers == {(0, 0): "6", (1, 0): "2", (0, 2): "1", (2, 2): "1,234"}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    assert ax.get_title() == "1,240 of 1,243 correct"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "eel"]
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {0.0}


def test_many_classes_have_upright_names_and_no_numbers(tmp_path):
    ax = confusion_figure(np.eye(100, dtype=int), [f"class {i}" for i in range(100)]).axes[0]
    assert not ax.texts
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {90.0}


def test_the_confusion_png_changes_with_the_counts(tmp_path):
    pictures = []
    for counts in ([[5, 0], [0, 5]], [[0, 5], [0, 5]]):
        draw_confusion_matrix(np.array(counts), ["no", "yes"], tmp_path / "confusion.png")
        pictures.append(read_png(tmp_path / "confusion.png"))
    height = len(pictures[0])
    changed = np.abs(pictures[0] - pictures[1]).sum(-1) > 200
    assert changed[: height // 2].mean() > 0.3
    assert changed[int(0.6 * height) :].mean() == 0


@pytest.mark.parametrize(("counts", "names"), [(np.ones((3, 2)), ["a", "b", "c"]), (np.ones((2, 2)), ["a"]), ([], [])])
def test_confusion_matrix_refuses_counts_of_other_classes(counts, names):
    with pytest.raises(InputError, match=r"counts must be \(k, k\)"):
        confusion_figure(counts, names)


def test_a_map_may_lie_over_its_input():
    """Where the map is flat the colours follow the input; without the overlay they do not."""
    image = np.zeros((1, 8, 8, 3), np.float32)
    image[:, :, 4:] = 1
    heat = np.random.default_rng(0).random((1, 8, 8, 1)).repeat(2, 0)[:1]

    def brightness(overlay):
        figure = attention_figure(image, {"gate": heat}, overlay=overlay)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.axes[1].get_window_extent()
        pixels = np.asarray(canvas.buffer_rgba())[::-1]
        inside = pixels[int(box.y0) + 2 : int(box.y1) - 2, int(box.x0) + 2 : int(box.x1) - 2, :3].mean((0, 2))
        half = len(inside) // 2
        return inside[:half].mean(), inside[half:].mean()

    dark, bright = brightness(overlay=True)
    assert bright - dark > 80
    dark, bright = brightness(overlay=False)
    assert abs(bright - dark) < 40
