"""The comparison with PyTorch: run small where torch is installed, and refused where it is not."""

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

from attn_flax.checks import InputError
from attn_flax.models import create_model
from experiments.benchmark import Config, main, parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


@pytest.fixture
def python_without_torch(tmp_path):
    """This interpreter, but its torch cannot be imported."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_both_sides_are_timed(tmp_path, console):
    pytest.importorskip("torch")
    result = main(Config(epochs=1, batch_size=400, out=tmp_path / "benchmark.json"), console)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == result
    assert (result["images"], result["batch_size"]) == (1200, 400)
    (ours,), (theirs,) = result["seconds"]["attn_flax"], result["seconds"]["torch"]
    assert result["median"] == result["minimum"] == {"attn_flax": ours, "torch": theirs, "ratio": ours / theirs}
    printed = console.file.getvalue()
    assert "An epoch of 1,200 digits in batches of 400" in printed
    assert f"jax {jax.__version__}" in printed
    assert f"{ours:.3f}" in printed
    assert f"{theirs:.3f}" in printed


def test_both_sides_train_the_same_network():
    torch = pytest.importorskip("torch")
    from experiments.benchmark_torch import network

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


def test_without_torch(python_without_torch, console):
    with pytest.raises(InputError, match="cannot be compared with: ModuleNotFoundError: No module named 'torch'"):
        main(Config(python_without_torch), console)


def test_without_torch_the_command_ends_with_one_screen(python_without_torch):
    command = [sys.executable, "-m", "experiments.benchmark", "--torch-python", python_without_torch]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "--torch-python PATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 12


def test_no_such_interpreter(tmp_path, console):
    with pytest.raises(InputError, match="cannot be run: No such file or directory"):
        main(Config(tmp_path / "python"), console)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "from 1 to 1293"),
        ({"batch_size": 1294}, "got 1294"),
    ],
)
def test_numbers_out_of_range(arguments, message, console, monkeypatch):
    monkeypatch.setattr("experiments.benchmark._require_torch", lambda python: None)
    with pytest.raises(InputError, match=message):
        main(Config(**arguments), console)


def test_command_line():
    argv = ["--torch-python", "p", "--epochs", "3", "--batch-size", "64", "--out", "o.json"]
    assert parse(argv) == Config(Path("p"), 3, 64, Path("o.json"))
    assert parse([]) == Config(Path(sys.executable), 9, 128, None)
