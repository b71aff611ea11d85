"""The kernels for accelerators, as far as a CPU can follow: lowered, interpreted, and refused with a reason."""

import functools
import re
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from attn_flax import ops
from attn_flax.ops import attention
from attn_flax.ops.attention import kernels
from attn_flax.ops.attention.operands import Rule
from tests.ops.attention_cases import textbook

RULE = Rule(0.3, False, 0.0)


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


@pytest.fixture
def on_gpu(monkeypatch):
    """A Hopper GPU with cuDNN, as far as those ask that build its kernels."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_compute_capability", lambda capability: True)


def operands(*shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3)]


def both_passes(attend, q, k, v):
    output, pull_back = jax.vjp(attend, q, k, v)
    return output, *pull_back(output)


def lowered(platform, attend, *arrays):
    run = functools.partial(both_passes, attend)
    return jax.jit(run).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.usefixtures("on_tpu")
@pytest.mark.parametrize(("is_causal", "has_bias"), [(False, True), (True, False)])
def test_flash_attention_of_tpus(is_causal, has_bias):
    q, k, v = operands(2, 256, 3, 16)
    bias = jnp.asarray(np.random.default_rng(5).normal(size=(3, 256, 256)), "float32") if has_bias else None
    attend = functools.partial(ops.dot_product_attention, bias=bias, is_causal=is_causal, scale=0.3)
    with pltpu.force_tpu_interpret_mode():
        outputs = both_passes(attend, q, k, v)
    expected = both_passes(functools.partial(textbook, bias=bias, is_causal=is_causal, scale=0.3), q, k, v)
    for one, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5 * float(jnp.abs(other).max()))
    assert "tpu_custom_call" in lowered("tpu", attend, q, k, v)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("has_mask", [False, True])
def test_cudnn_is_what_a_gpu_gets(has_mask):
    q, k, v = operands(2, 64, 3, 16, dtype="bfloat16")
    mask = jnp.asarray(np.random.default_rng(3).random((2, 1, 64, 64)) < 0.8) if has_mask else None
    text = lowered("cuda", functools.partial(ops.dot_product_attention, mask=mask), q, k, v)
    assert text.count("custom_call @__cudnn$fmha") == 2  # forward and backward


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("is_causal", [False, True])
def test_cudnn_gets_even_numbers_of_tokens_and_the_same_comes_out(is_causal, monkeypatch):
    """XLA's own attention, here in cuDNN's place, is given the padded tokens and how many are keys."""
    asked = []

    def in_its_place(q, k, v, implementation, **options):
        asked.append((implementation, q.shape[1], k.shape[1]))
        return xla(q, k, v, **options)

    xla = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", in_its_place)
    (q, _, _), (k, v, _) = operands(2, 7, 3, 8), operands(2, 5, 3, 8, seed=1)
    attend = functools.partial(ops.dot_product_attention, is_causal=is_causal)
    outputs = both_passes(attend, q, k, v)
    expected = both_passes(functools.partial(textbook, is_causal=is_causal), q, k, v)
    for one, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))
    assert set(asked) == {("cudnn", 8, 6)}


@pytest.mark.usefixtures("on_gpu")
def test_cudnn_computes_odd_numbers_of_tokens():
    text = lowered("cuda", ops.dot_product_attention, *operands(2, 49, 3, 16, dtype="bfloat16"))
    assert text.count("custom_call @__cudnn$fmha") == 2  # forward and backward


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("arrays", "options", "reason"),
    [
        (operands(2, 64, 3, 16), {}, "must be fp16/bf16"),
        (operands(2, 64, 3, 12, dtype="bfloat16"), {}, "multiple of 8"),
        (operands(2, 49, 3, 16, dtype="bfloat16"), {"bias": jnp.ones((3, 49, 49), jnp.bfloat16)}, "sequence length"),
    ],
)
def test_what_cudnn_refuses_is_computed_otherwise(arrays, options, reason):
    attention._warn_once.cache_clear()
    with pytest.warns(UserWarning, match=rf"attention by 'cudnn' is not possible here.*({reason})"):
        text = lowered("cuda", functools.partial(ops.dot_product_attention, implementation="cudnn", **options), *arrays)
    assert "__cudnn$fmha" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it says so once, and nothing where it was not asked for
        lowered("cuda", functools.partial(ops.dot_product_attention, implementation="cudnn", **options), *arrays)
        assert "__cudnn$fmha" not in lowered("cuda", functools.partial(ops.dot_product_attention, **options), *arrays)


@pytest.mark.parametrize("name", ["cudnn", "pallas"])
def test_without_an_accelerator_another_way_is_taken(name):
    attention._warn_once.cache_clear()
    q, k, v = operands(2, 7, 3, 4)
    with pytest.warns(UserWarning, match=f"attention by '{name}' is not possible here.*it needs a"):
        output = ops.dot_product_attention(q, k, v, implementation=name)
    np.testing.assert_array_equal(output, ops.dot_product_attention(q, k, v))


@pytest.mark.usefixtures("on_tpu")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"q": jnp.ones((2, 100, 3, 4))}, r"multiples of 128 tokens, got \(100, 128\)"),
        ({"mask": jnp.ones((128, 128), bool)}, "neither masks nor dropout"),
        ({"k": jnp.ones((2, 128, 1, 4)), "v": jnp.ones((2, 128, 1, 4))}, "as many heads"),
        ({"v": jnp.ones((2, 128, 3, 5))}, "values as deep"),
    ],
)
def test_what_the_kernel_for_tpus_does_not_compute(change, reason):
    x = kernels.Arrays(*[jnp.ones((2, 128, 3, 4))] * 3, None, None)
    assert kernels.unfit_for_pallas(x, RULE) is None
    assert re.search(reason, kernels.unfit_for_pallas(x._replace(**change), RULE))


@pytest.fixture
def on_hopper(on_gpu, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [mock.Mock(compute_capability="9.0")])
    versions = mock.Mock(cuda_runtime_get_version=lambda: 13000)
    monkeypatch.setattr("jax.experimental.pallas.ops.gpu.attention_mgpu.cuda_versions", versions)


@pytest.mark.usefixtures("on_hopper")
def test_flash_attention_3_where_it_is_asked_for():
    attend = functools.partial(ops.dot_product_attention, implementation="pallas")
    text = lowered("cuda", attend, *operands(2, 256, 3, 64, dtype="float16"))
    assert text.count("custom_call @mosaic_gpu") == 3  # forward, dq, dk and dv
    attention._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="gradients in float16 only"):
        assert "mosaic_gpu" not in lowered("cuda", attend, *operands(2, 256, 3, 64, dtype="bfloat16"))


@pytest.mark.usefixtures("on_gpu")
def test_large_maps_on_a_gpu_are_computed_in_blocks():
    chosen = []
    for tokens in (256, 8192):
        x = jax.ShapeDtypeStruct((1, tokens, 4, 16), jnp.float32)
        jax.eval_shape(lambda x: chosen.append(attention._chosen(kernels.Arrays(x, x, x, None, None), RULE, None)), x)
    assert chosen == ["xla", "blockwise"]
