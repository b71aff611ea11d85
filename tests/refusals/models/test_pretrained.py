"""What pretrained networks refuse."""

import json
import sys

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from attn_flax import interop
from attn_flax.checks import InputError
from attn_flax.models import create_model
from attn_flax.preprocessing import Preprocessing

SIZES = {"embed_dim": 4, "depth": 1, "num_heads": 1, "patch_size": 4, "image_size": 8}


def create(pretrained, name="vit_tiny_patch16_224", **arguments):
    return create_model(name, **SIZES | arguments, pretrained=pretrained, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def state():
    return interop.to_timm(create(None, num_classes=3))


@pytest.fixture
def folder(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    describe(tmp_path)
    return tmp_path


def describe(folder, **changed):
    content = {"architecture": "vit_tiny_patch16_224", "num_classes": 3} | changed
    (folder / "config.json").write_text(json.dumps(content))


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    for name in ("pytorch_model.bin", "a.pth", "b.ckpt", "c.pt", "d.tar"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=rf"{name} may be a pickle.*expected safetensors.*weights_only=True"):
            create(tmp_path / name)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*none\.safetensors: expected safetensors there, or an iden"):
        create(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"there is no .*model\.safetensors: expected safetensors there"):
        create(tmp_path)
    with pytest.raises(InputError, match=r"there is no some where: expected safetensors there"):
        create("some where")


def test_a_damaged_file(folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model\.safetensors is no file of safetensors, or damaged"):
        create(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"architecture": "x"}', '{"num_classes": 3}'])
def test_a_description_that_is_none(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is no description of a network by timm"):
        create(folder)


def test_another_architecture(folder):
    with pytest.raises(InputError, match=r"holds the network 'vit_tiny_patch16_224', got the name 'vit_small_patch16"):
        create(folder, name="vit_small_patch16_224")


def test_numbers_of_another_network(folder):
    with pytest.raises(InputError, match=r"do not fit VisionTransformer: missing blocks\.1\..* and \d+ more"):
        create(folder, depth=4)
    with pytest.raises(InputError, match=r"head\.weight must be \(3, 8\), got \(3, 4\)"):
        create(folder, embed_dim=8)


def test_a_network_that_timm_does_not_have(folder):
    describe(folder, architecture="attention_net")
    with pytest.raises(InputError, match="timm has no counterpart of AttentionNet"):
        create_model("attention_net", pretrained=folder, rngs=nnx.Rngs(0))


def test_no_head_and_no_number_of_classes(folder, state):
    save_file({k: v for k, v in state.items() if not k.startswith("head")}, folder / "model.safetensors")
    describe(folder, num_classes=0)
    with pytest.raises(InputError, match="has no head for classes: num_classes must be given, got None"):
        create(folder)


def test_the_hub_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"'timm/vit' is no path, and the hub needs huggingface_hub: pip install"):
        create("timm/vit")


PREPARED = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "size": (8, 8)}
REFUSALS = {
    "std": (lambda: Preprocessing(**PREPARED | {"std": (0.0,) * 3}), "std must be positive"),
    "one std": (lambda: Preprocessing(**PREPARED | {"std": (0.5,)}), "mean and std must be as many"),
    "size": (lambda: Preprocessing(**PREPARED | {"size": (0, 8)}), "size must be a height and a width, got"),
    "crop": (lambda: Preprocessing(**PREPARED, crop=1.5), r"crop must be in \(0, 1\], got 1.5"),
    "kernel": (lambda: Preprocessing(**PREPARED, interpolation="cubic"), "interpolation must be one of .*bicubic"),
    "image": (
        lambda: Preprocessing(**PREPARED).apply([np.ones((9, 9, 3))]),
        r"images must be uint8 \(h, w, 1 or 3\), got float64 \(9, 9, 3\)",
    ),
    "channels": (
        lambda: Preprocessing((0.5,) * 2, (0.5,) * 2, (8, 8)).apply([np.ones((9, 9, 3), np.uint8)]),
        "mean must have 1 or 3 values to prepare images, got 2",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    attempt, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        attempt()
