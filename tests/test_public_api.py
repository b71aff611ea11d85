"""What users import: complete, documented, and there."""

import importlib
import inspect
import pkgutil

import pytest
from flax import nnx

import attn_flax
from attn_flax import catalog, functional, mechanisms, nn

ROOMS = ("data", "explain", "functional", "interop", "models", "nn", "ops", "runs", "tasks", "training")


def mechanism_files():
    for found in pkgutil.walk_packages(mechanisms.__path__, "attn_flax.mechanisms."):
        if not found.ispkg and found.name.count(".") == 3:
            yield importlib.import_module(found.name)


def public(module, kind):
    return {
        name
        for name, value in vars(module).items()
        if kind(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def attends(value):
    return inspect.isclass(value) and issubclass(value, nnx.Module) and hasattr(value, "attention_map")


def is_documented(value):
    """Whether it has a docstring of its own, not the signature that a dataclass gives itself."""
    doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return bool(doc) and not doc.startswith(f"{value.__name__}(")


def test_the_faces_show_every_mechanism():
    files = list(mechanism_files())
    assert len(files) >= 2
    assert set(functional.__all__) == set().union(*(public(file, inspect.isfunction) for file in files))
    assert set(nn.__all__) == set().union(*(public(file, attends) for file in files))


def test_the_catalogue_holds_every_module():
    of_several_maps = {nn.MultiScaleDeformableAttention}
    in_catalogue = {row.module for row in catalog.CATALOG.values()}
    assert in_catalogue | of_several_maps == {getattr(nn, name) for name in nn.__all__}


def test_every_mechanism_names_its_source():
    for file in mechanism_files():
        assert "Source:" in file.__doc__


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_exports_is_there_and_documented(room):
    module = importlib.import_module(f"attn_flax.{room}")
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value):
            assert is_documented(value), name


def test_the_package_offers_its_rooms_and_makers():
    assert set(ROOMS) < set(dir(attn_flax))
    for name in attn_flax.__all__:
        assert getattr(attn_flax, name) is not None
    assert attn_flax.create_attention is catalog.create_attention
    with pytest.raises(AttributeError, match="'attn_flax' has no attribute 'attension'"):
        _ = attn_flax.attension
