"""Networks with numbers that were trained elsewhere, and how their images are prepared."""

import json
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from attn_flax import interop
from attn_flax.checks import InputError
from attn_flax.models import create_model
from attn_flax.preprocessing import Preprocessing
from tests import timm_oracle
from tests.models import timm_networks

NAME = "vit_tiny_patch16_224"
SIZES = {"embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 4, "image_size": 12}
PREPARED = {
    "input_size": [3, 12, 12],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "crop_pct": 0.9,
    "interpolation": "bicubic",
}
small = partial(create_model, NAME, **SIZES, rngs=nnx.Rngs(5))


def write(folder, state, **config):
    """What timm writes, and the hub holds."""
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    content = {"architecture": NAME, "num_classes": 7, "pretrained_cfg": PREPARED}
    (folder / "config.json").write_text(json.dumps(content | config))
    return folder


@pytest.fixture(scope="module")
def trained():
    """A network whose numbers are none that it starts with, those that it should take for a trained one's."""
    return create_model(NAME, **SIZES, num_classes=7, rngs=nnx.Rngs(99))


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    return write(tmp_path_factory.mktemp("pretrained"), interop.to_timm(trained))


def assert_equal(ours, theirs, but=()):
    ours, theirs = interop.to_timm(ours), interop.to_timm(theirs)
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        if not key.startswith(but or " "):
            np.testing.assert_array_equal(array, theirs[key], err_msg=key)


def test_a_folder_gives_its_numbers_its_classes_and_how_its_images_are_prepared(trained, folder, capsys):
    model = small(pretrained=folder)
    assert_equal(model, trained)
    assert model.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (12, 12), 0.9, "bicubic")
    assert capsys.readouterr().out == ""


def test_a_file_alone_gives_its_numbers_and_says_what_it_does_not_tell(trained, folder, tmp_path, capsys):
    (tmp_path / "numbers.safetensors").symlink_to(folder / "model.safetensors")
    model = small(pretrained=str(tmp_path / "numbers.safetensors"))
    assert_equal(model, trained)
    assert model.preprocessing is None
    assert "numbers.safetensors were prepared is not known: no config.json lies beside it" in capsys.readouterr().out


def test_another_number_of_classes_gets_a_new_head_and_is_told(trained, folder):
    told = []
    model = small(pretrained=folder, num_classes=3, tell=told.append)
    assert told == [f"{folder} is for 7 classes: the head for 3 is new and untrained."]
    assert model.head.kernel.shape == (8, 3)
    assert float(jnp.std(model.head.kernel[...])) > 0
    assert_equal(model, trained, but="head.")


def test_numbers_without_a_head_get_one(trained, tmp_path):
    state = {name: array for name, array in interop.to_timm(trained).items() if not name.startswith("head.")}
    told = []
    model = small(pretrained=write(tmp_path, state, num_classes=0), num_classes=7, tell=told.append)
    assert told == [f"{tmp_path} is without a head: the head for 7 is new and untrained."]
    assert_equal(model, trained, but="head.")
    assert float(jnp.std(model.head.kernel[...])) > 0


def test_what_is_left_out_is_drawn_anew(folder):
    """Every dropout has keys of its own, as in a network that was made without a file."""
    model = small(pretrained=folder, drop_path_rate=0.5)
    keys = [variable for _, variable in nnx.iter_graph(model) if isinstance(variable, nnx.RngKey)]
    data = np.array([jax.random.key_data(key[...]) for key in keys])
    assert len(np.unique(data, axis=0)) == len(data) > 0
    x = jnp.ones((64, 12, 12, 3))
    assert len(np.unique(np.asarray(model(x)).round(4), axis=0)) > 1


def test_for_another_image_size_positions_are_resampled(trained, folder):
    """The network itself resamples for images of another size."""
    x = jax.random.normal(jax.random.key(0), (2, 20, 8, 3))
    model = create_model(NAME, **SIZES | {"image_size": (20, 8)}, pretrained=folder, rngs=nnx.Rngs(0))
    assert model.pos_embed.shape == (11, 8)
    np.testing.assert_allclose(model(x), trained(x), rtol=1e-5, atol=1e-6)


def test_numbers_of_sixteen_bits_are_read(trained, tmp_path):
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in interop.to_timm(trained).items()}
    model = small(pretrained=write(tmp_path, halves))
    assert model.head.kernel.dtype == jnp.float32
    np.testing.assert_array_equal(model.head.kernel[...], trained.head.kernel[...].astype(jnp.bfloat16))


def test_of_a_mode_that_is_not_known_it_says_so(trained, tmp_path):
    told = []
    cropped = write(tmp_path, interop.to_timm(trained), pretrained_cfg=PREPARED | {"crop_mode": "border"})
    assert small(pretrained=cropped, tell=told.append).preprocessing is None
    assert told == [
        f"how the images of {tmp_path} were prepared is not known: config.json: images are cropped in the mode "
        "'border'; only 'center' is known."
    ]


@pytest.mark.parametrize("identifier", ["timm/vit_tiny.some_data", "hf-hub:timm/vit_tiny.some_data"])
def test_an_identifier_is_fetched_from_the_hub(trained, folder, monkeypatch, identifier):
    asked = []

    def fetch(identifier, file):
        asked.append((identifier, file))
        return str(folder / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=fetch))
    assert_equal(small(pretrained=identifier), trained)
    assert asked == [("timm/vit_tiny.some_data", "model.safetensors"), ("timm/vit_tiny.some_data", "config.json")]


def test_without_a_network_it_says_so(monkeypatch):
    def fetch(identifier, file):
        raise OSError("no route to host\nand a long story")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=fetch))
    with pytest.raises(
        InputError, match=r"'timm/vit_tiny' is no path, and cannot be fetched from the hub: no route .*t$"
    ):
        small(pretrained="timm/vit_tiny")


def by_hand(image, size, crop, kernel):
    """As timm describes it: the short side to ⌊size/crop⌋, the long one in proportion and rounded down; the centre."""
    w, h = image.size
    short = int(size / crop)
    w, h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    pixels = np.asarray(image.resize((w, h), kernel), float)
    top, left = round((h - size) / 2), round((w - size) / 2)
    return pixels[top : top + size, left : left + size] / 255


@pytest.mark.parametrize("shape", [(37, 53, 3), (71, 30, 3)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_are_resized_cropped_and_standardised(shape, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    prepared = Preprocessing(mean, std, (24, 24), 0.8, interpolation).apply([pixels, Image.fromarray(pixels)])
    expected = (by_hand(Image.fromarray(pixels), 24, 0.8, Image.Resampling[interpolation.upper()]) - mean) / std
    assert prepared.shape == (2, 24, 24, 3)
    assert prepared.dtype == np.float32
    for image in prepared:
        np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-5)


def test_an_image_of_one_channel_is_repeated_and_a_lying_one_fills_both_sides():
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7, 1)
    prepared = Preprocessing((0.0,) * 3, (1.0,) * 3, (5, 6), 1.0, "nearest").apply([grey])
    np.testing.assert_allclose(prepared[0] * 255, np.repeat(grey[:, :6], 3, -1), rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18", NAME])
def test_what_timm_writes_is_read(name, tmp_path):
    hub = timm_oracle.load("models._hub")
    network = timm_networks.random_network(name, num_classes=7)
    hub.save_for_hf(network, tmp_path, safe_serialization=True)
    model = create_model(name, pretrained=tmp_path, rngs=nnx.Rngs(0))
    model.eval()
    settings = network.pretrained_cfg
    assert (model.preprocessing.mean, model.preprocessing.std) == (settings["mean"], settings["std"])
    assert (model.preprocessing.size, model.preprocessing.crop) == ((224, 224), settings["crop_pct"])
    ours, theirs = timm_networks.images(2, 224, 224, 3)
    np.testing.assert_allclose(
        jax.jit(lambda model, x: model(x))(model, ours), network(theirs).detach(), rtol=2e-4, atol=2e-4
    )
