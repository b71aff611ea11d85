"""Hamburger: attention by matrix decomposition.

    X = relu(W_l x + b_l)
    C = softmax(X Bᵀ)
    C ← C · X Bᵀ / (C B Bᵀ),   B ← B · Cᵀ X / (Cᵀ C B)      K times
    C ← C · X Bᵀ / (C B Bᵀ)
    y = relu(x + BN(W_u C B))

with 1×1 convolutions W_l from c to d channels and W_u back, the bases B, r rows of d features, and C of r coefficients
for each position; products and quotients of the updates are by element. The map is taken for a matrix of low rank and
noise: non-negative matrix factorisation finds the part of rank r, which is global context, without comparing positions.

Differs from the paper: nothing; of its decompositions this is the non-negative one. As in the paper the derivative is
that of the last update alone, C and B before it being constants (one-step gradient); `one_step_gradient=False`
differentiates through all updates. `cheese` adds the authors' second form, relu(BN(W_c ·)) before W_u. The bases are
random: in training every example gets its own at every call, as in the authors' code, uniform in (0, 1) and of unit
length, from the stream "bases" of `rngs`; in evaluation, where their code draws as well, all examples start from the
same ones, drawn at construction and kept with the running statistics, so that equal input gives equal output.

Errors elsewhere: the Awesome-Vision-Attentions port draws the coefficients for a fixed number of positions, so that it
takes maps of one size only, and it leaves out the batch norm and the relu at the end.

Source: Geng, Guo, Chen, Li, Wei and Lin, "Is Attention Better Than Matrix Decomposition?" (2021), arXiv:2109.04553;
compared with the authors' code.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, flatten_positions, promote

EPSILON = 1e-6


def hamburger_factors(
    x: Float[Array, "*b n d"], bases: Float[Array, "*a r d"], *, steps: int = 6, one_step_gradient: bool = True
) -> tuple[Float[Array, "*b n r"], Float[Array, "*b r d"]]:
    """C and B after K steps and the last update of C, in float32 or wider; denominators have 1e-6 added.

    Args:
        x: X, at least zero.
        bases: the B to start from, at least zero; the same for all, or some for each example.
        steps: K.
        one_step_gradient: whether C and B before the last update are constants to the derivative.
    """
    wide = ops.at_least_float32(x.dtype)
    x, bases = x.astype(wide), bases.astype(wide)
    coefficients = ops.softmax(_similarities(x, bases))
    for _ in range(steps):
        coefficients = _updated_coefficients(x, coefficients, bases)
        bases = _updated_bases(x, coefficients, bases)
    if one_step_gradient:
        coefficients, bases = jax.lax.stop_gradient((coefficients, bases))
    return _updated_coefficients(x, coefficients, bases), jnp.broadcast_to(bases, (*x.shape[:-2], *bases.shape[-2:]))


def hamburger_weights(
    x: Float[Array, "*b n d"], bases: Float[Array, "*a r d"], *, steps: int = 6, one_step_gradient: bool = True
) -> Float[Array, "*b n r"]:
    """C of `hamburger_factors`: how much of each basis is in a position; at least zero."""
    coefficients, _ = hamburger_factors(x, bases, steps=steps, one_step_gradient=one_step_gradient)
    return coefficients.astype(x.dtype)


def hamburger(
    x: Float[Array, "*b n d"], bases: Float[Array, "*a r d"], *, steps: int = 6, one_step_gradient: bool = True
) -> Float[Array, "*b n d"]:
    """C B, the part of X that is of rank r, with the `hamburger_factors` of the same arguments.

    >>> x = jnp.array([[1.0, 2.0], [2.0, 4.0]])  # of rank one
    >>> hamburger(x, jnp.ones((1, 2))).round(3)
    Array([[1., 2.],
           [2., 4.]], dtype=float32)
    """
    coefficients, bases = hamburger_factors(x, bases, steps=steps, one_step_gradient=one_step_gradient)
    return ops.attend(coefficients, bases).astype(x.dtype)


def _similarities(x, bases):
    return jnp.einsum("...nd,...rd->...nr", x, bases)


def _updated_coefficients(x, coefficients, bases):
    gram = jnp.einsum("...rd,...sd->...rs", bases, bases)
    return coefficients * _similarities(x, bases) / (jnp.einsum("...ns,...rs->...nr", coefficients, gram) + EPSILON)


def _updated_bases(x, coefficients, bases):
    gram = jnp.einsum("...nr,...ns->...rs", coefficients, coefficients)
    numerator = jnp.einsum("...nr,...nd->...rd", coefficients, x)
    return bases * numerator / (jnp.einsum("...rs,...sd->...rd", gram, bases) + EPSILON)


class Hamburger(nnx.Module):
    """Hamburger on maps of any size, by non-negative matrix factorisation.

    Parameters: 2c·d + d + 2c, and d² + 2d with the cheese; r·d running numbers, the bases of evaluation. Multiply-adds
    in evaluation, of n positions: 2n·c·d + (2K + 3)·n·r·d + (2K + 1)·(n·r² + r²·d), and n·d² with the cheese.

    Args:
        channels: c.
        hidden: d.
        rank: r, the number of bases.
        steps: K.
        eval_steps: K in evaluation, by default the same; the authors' class has 7 there, their settings 6.
        one_step_gradient: whether the derivative is that of the last update alone.
        cheese: whether a 1×1 convolution of the d channels, batch norm and relu come before W_u.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters and of the bases.

    Raises:
        InputError: a size below 1 or steps below 0 at construction; an input that is no map of these channels at the
            call.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 512,
        rank: int = 64,
        steps: int = 6,
        eval_steps: int | None = None,
        one_step_gradient: bool = True,
        cheese: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        eval_steps = steps if eval_steps is None else eval_steps
        for name, size in (("channels", channels), ("hidden", hidden), ("rank", rank)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        for name, number in (("steps", steps), ("eval_steps", eval_steps)):
            check(number >= 0, f"{name} must be at least 0, got {number}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.lower = nnx.Linear(channels, hidden, **layer)
        self.cheese = nnx.data(nnx.Linear(hidden, hidden, use_bias=False, **layer) if cheese else None)
        self.cheese_norm = nnx.data(BatchNorm(hidden, **layer) if cheese else None)
        self.upper = nnx.Linear(hidden, channels, use_bias=False, **layer)
        self.norm = BatchNorm(channels, **layer)
        self.bases = nnx.BatchStat(_random_bases(rngs.params(), (rank, hidden), param_dtype))
        self.rngs = rngs["bases"].fork()
        self.steps = steps
        self.eval_steps = eval_steps
        self.one_step_gradient = one_step_gradient
        self.deterministic = False

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n r"]:
        """C, a row for each position in row-major order and a column for each basis."""
        return hamburger_weights(*self._operands(self._map(x)), **self._how())

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        rebuilt = hamburger(*self._operands(x), **self._how()).reshape(*x.shape[:-1], -1)
        if self.cheese is not None:
            rebuilt = jax.nn.relu(self.cheese_norm(self.cheese(rebuilt)))
        return jax.nn.relu(x + self.norm(self.upper(rebuilt)))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c), in evaluation."""
        h, w, c = shape
        n, steps = h * w, self.eval_steps
        rank, hidden = self.bases.shape
        with_cheese = self.cheese is not None
        parameters = 2 * c * hidden + hidden + 2 * c + (hidden * hidden + 2 * hidden if with_cheese else 0)
        factors = (2 * steps + 3) * n * rank * hidden + (2 * steps + 1) * rank * rank * (n + hidden)
        return Cost(parameters, 2 * n * c * hidden + factors + (n * hidden * hidden if with_cheese else 0))

    def _operands(self, x):
        """X and the bases to start from."""
        positions = flatten_positions(jax.nn.relu(self.lower(x)), 2)
        bases = self.bases[...]
        if not self.deterministic:
            bases = _random_bases(self.rngs(), (*positions.shape[:-2], *bases.shape), bases.dtype)
        return positions, bases

    def _how(self):
        steps = self.eval_steps if self.deterministic else self.steps
        return {"steps": steps, "one_step_gradient": self.one_step_gradient}

    def _map(self, x):
        check_map(x, self.lower.in_features)
        return promote(x, self.lower)


def _random_bases(key, shape, dtype):
    bases = jax.random.uniform(key, shape, dtype)
    return bases / jnp.linalg.norm(bases, axis=-1, keepdims=True)
