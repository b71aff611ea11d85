"""Programs for batches of any size compute what the network does."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import interop
from attn_flax.checks import InputError
from attn_flax.models import create_model

full = pytest.mark.full
NETWORKS = [
    pytest.param("attention_net", {}, (8, 8, 3)),
    pytest.param(
        "resnet18",
        {"stem": "cifar", "attention": "se", "widths": (4, 8, 8, 8), "stem_widths": (4,)},
        (16, 8, 3),
        marks=full,
    ),
    pytest.param("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 12, "image_size": 32}, (32, 32, 3), marks=full),
    pytest.param(
        "swin_tiny_patch4_window7_224",
        {"depths": (2, 2), "embed_dim": 32, "image_size": 32, "window": 4},
        (32, 32, 3),
        marks=full,
    ),
    pytest.param("skresnet18", {"widths": (16, 16, 16, 16)}, (32, 32, 3), marks=full),
]


@pytest.mark.parametrize(("name", "arguments", "shape"), NETWORKS)
def test_it_computes_the_same_on_any_batch(name, arguments, shape):
    model = create_model(name, num_classes=5, **arguments, rngs=nnx.Rngs(0))
    model.eval()
    program = interop.from_stablehlo(interop.to_stablehlo(model, shape))
    for batch in (1, 3):
        x = jnp.asarray(np.random.default_rng(batch).normal(size=(batch, *shape)), jnp.float32)
        expected = nnx.jit(lambda model, x: model(x))(model, x)
        np.testing.assert_allclose(program(x), expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


def test_without_flatbuffers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(InputError, match=r"pip install 'attn_flax\[export\]'"):
        interop.to_stablehlo(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), (3,))
