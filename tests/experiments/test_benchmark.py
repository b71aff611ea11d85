"""The comparison with other libraries: run small, where these are installed, and refused where nothing fits."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from attn_flax import ops
from attn_flax.checks import InputError, UnknownNameError
from attn_flax.models import create_model
from experiments import benchmark
from experiments.benchmark import Config, main, parse
from experiments.benchmarking import jax_side
from experiments.benchmarking.side import peak_mib
from experiments.benchmarking.works import STEP, WORKS, Work

ROOT = Path(__file__).parents[2]
SMALL = {"batch": 2, "tokens": 33, "heads": 3, "features": 8, "bias": True, "mask": True, "dtype": "float32"}


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def small_works(monkeypatch):
    works = {
        "attention": Work("small attention", "attention", ("attn_flax", "jax.nn", "torch"), SMALL),
        "epoch": Work("an epoch", "epoch", ("attn_flax", "torch"), {"batch_size": 400}, ("training",)),
    }
    monkeypatch.setattr(benchmark, "WORKS", works)


@pytest.mark.usefixtures("small_works")
def test_sides_are_timed_in_turns(tmp_path, console):
    result = main(Config(("attention",), rounds=2, out=tmp_path / "out.json"), console)
    assert json.loads((tmp_path / "out.json").read_text()) == result
    forward, both = result["results"]
    assert (forward["pass"], both["pass"]) == ("forward", "forward+backward")
    for part in (forward, both):
        assert all(len(times) == 2 and min(times) > 0 for times in part["seconds"].values())
        assert part["versions"]["attn_flax"]["jax"] == jax.__version__
        assert part["peak_mib"]["attn_flax"] >= 0
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("|")]
    ratio = forward["median"]["attn_flax"] / forward["median"]["jax.nn"]
    assert lines[3].startswith("| small attention | forward | jax.nn |")
    assert f"| {ratio:.2f} |" in lines[3]


@pytest.mark.full
@pytest.mark.usefixtures("small_works")
def test_pytorch_takes_its_turns(console):
    pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    result = main(Config(("*",), rounds=1), console)
    attention, _, epoch = result["results"]
    assert list(attention["seconds"]) == ["attn_flax", "jax.nn", "torch"]
    assert list(epoch["seconds"]) == ["attn_flax", "torch"]


@pytest.mark.full
def test_steps_of_training_are_timed_with_their_rates(console, monkeypatch):
    arguments = {"name": "attention_net", "shape": (5, 8, 8, 3), "dtype": "float32", "steps": 2}
    work = Work("a step", "training", ("attn_flax",), arguments, (STEP,))
    monkeypatch.setattr(benchmark, "WORKS", {"step": work})
    (result,) = main(Config(("step",), rounds=3), console)["results"]
    rate = 5 / result["median"]["attn_flax"]
    assert result["images_per_second"]["attn_flax"] == pytest.approx(rate)
    operations = 6 * (8 * 8 * (27 * 64 + 9 * 64 * 128 + 2 * 64 * 8) + 8192 * 512 + 512 * 1000)
    assert result["flops"]["attn_flax"] == pytest.approx(rate * operations, rel=0.01)
    assert f"| {rate:,.1f} |" in console.file.getvalue()


@pytest.mark.full
def test_both_sides_of_a_step_train_the_same_network(monkeypatch):
    pytest.importorskip("timm", reason="timm is not installed: CONTRIBUTING.md says how")
    from experiments.benchmarking import torch_side

    arguments = {"name": "resnet18", "shape": (2, 32, 32, 3), "dtype": "float32", "steps": 1}
    assert all(side._training(**arguments)() > 0 for side in (jax_side, torch_side))


@pytest.mark.full
def test_mechanisms_and_models_by_name(console):
    config = Config(
        mechanisms=("article_gate",),
        models=("attention_net",),
        mechanism_shape=(2, 7, 5, 16),
        model_shape=(2, 8, 8, 3),
        rounds=1,
    )
    result = main(config, console)
    assert [part["work"] for part in result["results"]] == [
        *["article_gate at 2×7×5×16"] * 2,
        *["attention_net at 2×8×8×3"] * 2,
    ]


@pytest.mark.parametrize("name", ["windows", "multi-head", "depthwise-3x3", "depthwise-1x11", "neighborhood"])
def test_sides_in_jax_compute_the_same(name):
    work = WORKS[name]
    small = {"shape": (2, 9, 13), "batch": 3, "tokens": 17}
    arguments = {key: small.get(key, value) for key, value in work.arguments.items()}
    if work.function == "multi_head":
        arguments["shape"] = (2, 9, 12)
    if work.function == "depthwise":
        arguments["shape"] = (2, 9, 13, 5)
    results = []
    for side in work.sides:
        if side != "torch":
            built = jax_side.BUILDERS[work.function](side, **arguments)
            results.append(jax.tree.leaves(jax_side._compiled(*built, backward=True)()))
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5 * max(1.0, float(jnp.abs(other).max())))


@pytest.mark.full
def test_both_sides_train_the_same_network():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    from experiments.benchmarking.torch_side import network

    theirs, ours = network(), create_model("attention_net", num_classes=10, rngs=nnx.Rngs(0))
    layers = [
        (theirs[0], ours.conv1, (3, 3)),
        (theirs[1].conv1, ours.attention.reduce, (1, 1)),
        (theirs[1].conv2, ours.attention.expand, (1, 1)),
        (theirs[2], ours.conv2, (3, 3)),
        (theirs[5], ours.linear1, (8, 8)),
        (theirs[6], ours.linear2, (1, 1)),
    ]
    for layer, copy, window in layers:
        weight = layer.weight.detach().numpy().reshape(len(layer.weight), -1, *window)
        copy.kernel.set_value(jnp.array(weight.transpose(2, 3, 1, 0).reshape(copy.kernel.shape)))
        copy.bias.set_value(jnp.array(layer.bias.detach().numpy()))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(ours(jnp.array(x)), expected, atol=1e-5)


@pytest.mark.full
def test_attention_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 13, 3, 5)).astype(np.float32) for _ in range(3))
    bias = rng.normal(size=(1, 3, 13, 13)).astype(np.float32)
    heads_first = (torch.from_numpy(x).transpose(1, 2) for x in (q, k, v))
    theirs = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=torch.from_numpy(bias))
    ours = ops.dot_product_attention(*map(jnp.asarray, (q, k, v)), bias=jnp.asarray(bias))
    np.testing.assert_allclose(ours, theirs.transpose(1, 2), atol=1e-6)


def test_what_is_not_installed_is_left_out(tmp_path):
    """An interpreter without torch is told of; the other sides are timed."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    missing = benchmark._missing(python, {"torch"})
    assert missing == {
        "torch": "ModuleNotFoundError: No module named 'torch'; --torch-python PATH names another interpreter."
    }


def test_an_interpreter_that_says_nothing_is_told_of():
    missing = benchmark._missing("false", {"torch"})
    assert missing == {"torch": "false ends with status 1; --torch-python PATH names another interpreter."}


@pytest.mark.full
def test_a_shape_that_does_not_fit_ends_with_one_screen():
    options = ("--models", "attention_net", "--model-shape", "2", "8", "8", "4", "--rounds", "1")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *options], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "attention_net at 2×8×8×4, attn_flax" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_such_interpreter(tmp_path, console):
    with pytest.raises(InputError, match="cannot be run: No such file or directory"):
        main(Config(("vit",), torch_python=tmp_path / "python"), console)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(("vit",), rounds=0), "rounds must be at least 1"),
        (Config(("attentoin-1024",)), "unknown work 'attentoin-1024': did you mean 'attention-1024'"),
        (Config(models=("attention_nat",)), "did you mean 'attention_net'"),
    ],
)
def test_bad_options(config, message, console):
    with pytest.raises((InputError, UnknownNameError), match=message):
        main(config, console)


def test_works_for_a_gpu_are_left_out_without_one(console):
    assert main(Config(("gpu-*",)), console)["results"] == []
    assert "works for a GPU are left out" in console.file.getvalue()


def test_patterns_and_defaults():
    assert benchmark._chosen(Config(("depthwise-?x?",))) == [WORKS[f"depthwise-{n}x{n}"] for n in (7, 5, 3)]
    assert benchmark._chosen(Config()) == list(WORKS.values())
    argv = ["vit", "--torch-python", "p", "--rounds", "3", "--out", "o.json"]
    assert parse(argv) == Config(("vit",), torch_python=Path("p"), rounds=3, out=Path("o.json"))


def test_the_peak_of_memory_is_that_of_the_run():
    peak = peak_mib(lambda: np.ones(2**23).sum())  # 64 MiB
    assert peak is None or 60 < peak < 90
