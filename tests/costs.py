"""The multiply-adds of a function, counted by XLA: each product and convolution that it traces to, analysed alone."""

import functools
import math

import jax
from jax.extend import core

CONTRACTIONS = ("dot_general", "conv_general_dilated")


def multiply_adds(f, *arguments):
    """Those of the products and convolutions; zeros around a map count, and the costlier branch where there are two."""
    return _of_jaxpr(jax.make_jaxpr(f)(*arguments).jaxpr)


def _of_jaxpr(jaxpr):
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name in CONTRACTIONS:
        return _by_xla(equation.primitive, *(v.aval.update(weak_type=False) for v in equation.invars), **params)
    if name == "cond":
        return max(_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    times = params["length"] if name == "scan" else 1
    return times * sum(_of_jaxpr(jaxpr) for value in params.values() for jaxpr in _jaxprs(value))


def _jaxprs(value):
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, core.Jaxpr) else []


def _by_xla(primitive, left, right, **params):
    if "padding" in params:
        left, params = _padded(left, **params)
    flops = jax.jit(functools.partial(primitive.bind, **params)).lower(left, right).cost_analysis()["flops"]
    return round(flops) // 2 if math.isfinite(flops) else 0


def _padded(x, *, padding, dimension_numbers, lhs_dilation, **params):
    """The map as large as its zeros make it, to be convolved without any: XLA does not count products with zeros."""
    shape = list(x.shape)
    for axis, (low, high), dilation in zip(dimension_numbers.lhs_spec[2:], padding, lhs_dilation, strict=True):
        shape[axis] = (shape[axis] - 1) * dilation + 1 + low + high
    none = ((0, 0),) * len(padding)
    return jax.ShapeDtypeStruct(shape, x.dtype), {
        "padding": none,
        "dimension_numbers": dimension_numbers,
        "lhs_dilation": (1,) * len(padding),
        **params,
    }
