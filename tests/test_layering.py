"""Who may import whom, and what an import costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import attn_flax

ROOT = Path(__file__).parent.parent
HEAVY = {"tensorflow", "tensorflow_datasets", "grain", "sklearn", "matplotlib"}


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def loaded_by(code):
    return set(run(f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"))


def test_the_rooms_import_downwards_only():
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_package_loads_nothing_before_it_is_used():
    assert not loaded_by("import attn_flax") & (HEAVY | {"jax", "flax", "optax", "numpy"})


def test_networks_and_training_bring_no_data_or_picture_library():
    plain = loaded_by("import flax.nnx")
    added = loaded_by("from attn_flax import ops, functional, nn, catalog, models, training, tasks") - plain
    assert "attn_flax" in added
    assert not added & HEAVY


def test_the_package_costs_less_than_half_of_flax():
    code = (
        "import time\nstart = time.process_time()\nimport attn_flax\nmiddle = time.process_time()\nimport flax.nnx\n"
        "print(middle - start, time.process_time() - middle)"
    )
    ours, flax = map(float, run(code))
    assert ours < flax / 2


@pytest.mark.full
def test_each_module_can_be_imported_first():
    code = """
import importlib, pkgutil, sys
import attn_flax
from tensorflow_datasets.core.registered import skip_registration

def forget_the_package():
    for name in [name for name in sys.modules if name.partition(".")[0] == "attn_flax"]:
        del sys.modules[name]

with skip_registration():  # or a data set imported twice would be refused
    for found in pkgutil.walk_packages(attn_flax.__path__, "attn_flax."):
        forget_the_package()
        importlib.import_module(found.name)
        print(found.name)
"""
    assert {f"attn_flax.{room}" for room in attn_flax._ROOMS} < set(run(code))
