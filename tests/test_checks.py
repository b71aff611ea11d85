"""The refusals' own helpers."""

import pytest
from flax import nnx

from attn_flax.checks import InputError, UnknownNameError, check, check_arguments, check_same_size


def test_close_names_are_suggested():
    error = UnknownNameError("fruit", "aple", ["cherry", "apple"])
    assert str(error) == "unknown fruit 'aple': did you mean 'apple'?"


def test_all_names_are_listed_where_none_is_close():
    assert str(UnknownNameError("fruit", "xyz", ["pear", "apple"])) == "unknown fruit 'xyz': known are apple, pear."


def test_a_long_table_is_cut_off():
    error = UnknownNameError("number", "xyz", [f"{i:03}" for i in range(245)])
    assert str(error).endswith("028, 029 and 215 more.")


def test_every_refusal_is_a_value_error():
    assert issubclass(UnknownNameError, InputError)
    assert issubclass(InputError, ValueError)


def test_a_check_that_holds_is_silent():
    check(True, "never seen")
    with pytest.raises(InputError, match=r"^size must be even, got 7\.$"):
        check(False, "size must be even, got 7.")


class Plain:
    def __init__(self, size, *, depth=1): ...


class Module(nnx.Module):
    def __init__(self, size, *, depth=1): ...


def function(size, *, depth=1): ...


@pytest.mark.parametrize("factory", [Plain, Module, function])
def test_arguments_are_those_of_the_factory(factory):
    check_arguments("thing", factory, ["size", "depth"])
    with pytest.raises(UnknownNameError, match="unknown thing argument 'deph': did you mean 'depth'"):
        check_arguments("thing", factory, ["size", "deph"])


@pytest.mark.parametrize("factory", [Plain, Module])
def test_self_is_no_argument(factory):
    with pytest.raises(UnknownNameError, match="'self'"):
        check_arguments("thing", factory, ["self"])


def test_axes_of_different_size_are_refused():
    check_same_size(q=(4, 3), k=(5, 3), axes=(-1, -1))
    message = r"axis -1 of q and axis -2 of k must be of one size, got shapes \(4, 3\) and \(5, 1\)"
    with pytest.raises(InputError, match=message):
        check_same_size(q=(4, 3), k=(5, 1), axes=(-1, -2))
