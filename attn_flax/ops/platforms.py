"""One form of a function for the CPU, another for the rest."""

from collections.abc import Callable

import jax
from jax import lax


def by_platform(cpu: Callable, default: Callable) -> Callable:
    """The first form on a CPU, the second elsewhere; so do the derivatives, each of which keeps only its own.

    Args:
        cpu: a function of arrays.
        default: the same function.
    """

    @jax.custom_vjp
    def function(*arrays):
        return lax.platform_dependent(*arrays, cpu=cpu, default=default)

    def backward(arrays, dy):
        return lax.platform_dependent(*arrays, dy, cpu=_pulled_back(cpu), default=_pulled_back(default))

    function.defvjp(lambda *arrays: (function(*arrays), arrays), backward)
    return function


def _pulled_back(form):
    """From the arrays and the cotangent of what the form gives to the cotangents of the arrays."""
    return lambda *arrays_and_dy: jax.vjp(form, *arrays_and_dy[:-1])[1](arrays_and_dy[-1])
