"""Our Modules, configured as timm's and with timm's numbers, against timm's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import interop
from attn_flax.checks import InputError
from attn_flax.interop.timm_modules import TIMM, make_divisible
from tests import timm_oracle

CHANNELS = 48
SHAPE = (3, 7, 14, CHANNELS)
ARGUMENTS = {"ge": {"use_mlp": False}, "bat": {"block_size": 7}}
CASES = [
    *((name, ARGUMENTS.get(name, {})) for name in sorted(TIMM)),
    ("se", {"rd_ratio": 1 / 4, "bias": False}),
    ("se", {"rd_channels": 5}),
    ("ge", {"use_mlp": False, "extent": 2}),
    ("ge", {"use_mlp": False, "extent": 4}),
    ("gc", {"use_attn": False}),
    ("gca", {"rd_ratio": 1 / 3}),
    ("cbam", {"spatial_kernel_size": 3, "mlp_bias": True}),
    ("coord", {"bias": True}),
    ("ela", {"kernel_size": 5}),
    ("strip", {"kernel_size": 5, "bias": True}),
    ("sk", {"split_input": False, "rd_ratio": 1 / 4, "keep_3x3": False}),
    ("sk", {"groups": 4, "kernel_size": 5}),
    ("splat", {"groups": 2, "radix": 3, "rd_channels": 6}),
    ("nl", {"use_scale": False, "rd_divisor": 1}),
]
IDS = [f"{name}-{'-'.join(arguments)}".rstrip("-") for name, arguments in CASES]


@pytest.fixture(params=CASES, ids=IDS)
def case(request):
    return request.param


def pair(name, arguments, dtype="float32"):
    """timm's module with random numbers in it, and ours with the same."""
    theirs = timm_oracle.load("layers").create_attn(name, CHANNELS, **arguments)
    import torch

    theirs = theirs.to(getattr(torch, dtype))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if value.is_floating_point():
                numbers = rng.uniform(0.5, 2, value.shape) if "running_var" in key else rng.normal(size=value.shape)
                numbers /= max(1, value[0].numel() if value.ndim > 1 else 1) ** 0.5
                value.copy_(torch.from_numpy(np.asarray(numbers, dtype)))
    ours = interop.timm_attention(name, CHANNELS, **arguments, param_dtype=dtype, rngs=nnx.Rngs(0))
    statistics = nnx.state(ours, nnx.BatchStat)
    nnx.update(ours, jax.tree.map(lambda p: p.astype(dtype), statistics))
    interop.load_timm(ours, {key: value.numpy() for key, value in theirs.state_dict().items()})
    return ours, theirs


def outputs(ours, theirs, dtype="float32"):
    import torch

    x = np.random.default_rng(1).normal(size=SHAPE).astype(dtype)
    with torch.no_grad():
        y = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    return ours(jnp.asarray(x)), np.moveaxis(y.numpy(), 1, -1)


@pytest.mark.full
def test_equal_in_evaluation(case):
    ours, theirs = pair(*case)
    ours.eval()
    theirs.eval()
    np.testing.assert_allclose(*outputs(ours, theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_equal_in_training(case):
    """In float64: a batch norm of what differs little magnifies float32's rounding."""
    with jax.enable_x64():
        ours, theirs = pair(*case, "float64")
        ours.train()
        theirs.train()
        for module in theirs.modules():
            if type(module).__name__.startswith("Dropout"):
                module.eval()
        for _, module in nnx.iter_modules(ours):
            if isinstance(module, nnx.Dropout):
                module.deterministic = True
        np.testing.assert_allclose(*outputs(ours, theirs, "float64"), rtol=1e-9, atol=1e-9)


@pytest.mark.full
def test_the_numbers_come_back_as_they_were(case):
    ours, theirs = pair(*case)
    back = interop.to_timm(ours)
    expected = {key: value.numpy() for key, value in theirs.state_dict().items() if "num_batches" not in key}
    assert back.keys() == expected.keys()
    for key, array in back.items():
        assert array.dtype == expected[key].dtype
        assert array.tobytes() == np.ascontiguousarray(expected[key]).tobytes()


@pytest.mark.full
def test_parameters_are_as_many(case):
    ours, theirs = pair(*case)
    count = sum(p.size for p in jax.tree.leaves(nnx.state(ours, nnx.Param)))
    assert count == sum(p.numel() for p in theirs.parameters())


def numbers():
    return interop.to_timm(interop.timm_attention("se", 16, rngs=nnx.Rngs(1)))


FAULTS = {
    "missing": (lambda state: state.pop("fc1.weight"), r"missing fc1\.weight"),
    "unexpected": (lambda state: state.update(bn=np.ones(3)), "unexpected bn"),
    "shape": (
        lambda state: state.update({"fc2.bias": np.ones(3)}),
        r"fc2\.bias must be \(16,\), got \(3,\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_listed_and_changes_nothing(fault):
    break_it, message = FAULTS[fault]
    module, state = interop.timm_attention("se", 16, rngs=nnx.Rngs(0)), numbers()
    before = interop.to_timm(module)
    break_it(state)
    with pytest.raises(InputError, match=message):
        interop.load_timm(module, state)
    for name, array in interop.to_timm(module).items():
        np.testing.assert_array_equal(array, before[name])


def test_all_faults_are_listed_at_once():
    state = numbers()
    del state["fc1.weight"]
    state |= {"fc2.bias": np.ones(3), "extra": np.ones(2)}
    with pytest.raises(InputError, match=r"missing fc1\.weight, unexpected extra") as caught:
        interop.load_timm(interop.timm_attention("se", 16, rngs=nnx.Rngs(0)), state)
    assert "fc2.bias must be" in str(caught.value)


REFUSALS = {
    "name": (lambda: interop.timm_attention("see", 8, rngs=nnx.Rngs(0)), "unknown timm attention 'see': did you mean"),
    "argument": (
        lambda: interop.timm_attention("se", 8, rd_ration=0.1, rngs=nnx.Rngs(0)),
        "unknown timm's se argument 'rd_ration': did you mean 'rd_ratio'",
    ),
    "channels": (lambda: interop.timm_attention("eca", 0, rngs=nnx.Rngs(0)), "channels must be at least 1, got 0"),
    "module": (lambda: interop.to_timm(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), "timm has no counterpart of Linear"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    attempt, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attempt()


@pytest.mark.full
def test_widths_are_rounded_as_timm_rounds_them():
    theirs = timm_oracle.load("layers.helpers").make_divisible
    for width in np.linspace(0.3, 300, 997):
        for divisor, limit in ((1, 0.0), (8, 0.0), (8, 0.9)):
            assert make_divisible(width, divisor, round_limit=limit) == theirs(width, divisor, round_limit=limit)
