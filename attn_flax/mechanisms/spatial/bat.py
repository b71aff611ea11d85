"""The bilinear attentional transform.

    z = relu(BN(W_1 x))
    u = relu(BN(W_s z))
    P = rows normalised of sigmoid(p(max over each of s bands of rows of u))
    Q = rows normalised of sigmoid(q(max over each of s bands of columns of u))
    y = x + drop(relu(BN(W_2 relu(BN(W_3 P z Qᵀ)))))

with W_1 from c to c/r features, W_s to one for each of k groups, p and q convolutions over the s bands that give each
group an s×s matrix, and dropout of whole channels. The map is cut into s×s blocks; P mixes the positions with the same
place in the blocks of a column of blocks, Q those in a row, each with one pair of matrices for all channels of a group.

Differs from the paper: nothing. The defaults are the authors' code's; timm's are r = 4 with the width rounded to a
multiple of 8, s = 7, k = 2 and no biases before the batch norms. The authors write the transpose of Q.

Errors elsewhere: the authors' code repeats both P and Q as often as the height needs, which fits square maps only; timm
repeats Q by the width.

Source: Chi, Yuan, Mu and Wang, "Non-Local Neural Networks With Grouped Bilinear Attentional Transforms" (2020), CVPR
2020 (no arXiv id). Confirmed with the authors' code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, hidden_width, promote


def bat_weights(
    u: Float[Array, "*b h w g"], row: Callable, column: Callable, *, block_size: int
) -> tuple[Float[Array, "*b g s s"], Float[Array, "*b g s s"]]:
    """P and Q, whose rows sum to one.

    Args:
        u: the map to make them of, a channel for each group.
        row: p, any callable from (*b, s, 1, g) to the g·s·s numbers of P, group by group and row by row.
        column: q, likewise from (*b, 1, s, g) to those of Qᵀ.
        block_size: s.

    Raises:
        InputError: a height or width that s does not divide.
    """
    *b, h, w, g = u.shape
    s = block_size
    check(
        h % s == 0 and w % s == 0 and min(h, w) >= 1,
        f"x must have a height and a width that block_size={s} divides, got {h}×{w}.",
    )
    of_rows = u.reshape(*b, s, h // s, w, g).max((-3, -2))[..., :, None, :]
    of_columns = u.reshape(*b, h, s, w // s, g).max((-4, -2))[..., None, :, :]
    p, q = (y.reshape(*b, g, s, s) for y in (row(of_rows), column(of_columns)))
    return _normalized_sigmoid(p), _normalized_sigmoid(jnp.swapaxes(q, -1, -2))


def bat(
    z: Float[Array, "*b h w c"], p: Float[Array, "*b g s s"], q: Float[Array, "*b g s s"]
) -> Float[Array, "*b h w c"]:
    """P z Qᵀ, for each group of channels in a row; P and Q act on blocks, the same for every place in them.

    Args:
        z: maps of s·t_h × s·t_w positions and g groups of channels.
        p: P, of which row i and column j stand for the rows i·t_h + a and j·t_h + a of z, for any a.
        q: Q, likewise for columns.

    >>> swap, keep = jnp.array([[[0.0, 1.0], [1.0, 0.0]]]), jnp.eye(2)[None]
    >>> bat(jnp.arange(8.0).reshape(4, 2, 1), swap, keep).squeeze()
    Array([[4., 5.],
           [6., 7.],
           [0., 1.],
           [2., 3.]], dtype=float32)
    """
    *b, h, w, c = z.shape
    g, s, _ = p.shape[-3:]
    blocks = z.reshape(*b, s, h // s, s, w // s, g, c // g)
    rows_mixed = jnp.einsum("...gij,...jamdgc->...iamdgc", p, blocks)
    return jnp.einsum("...glm,...iamdgc->...ialdgc", q, rows_mixed).reshape(z.shape)


class ConvNormRelu(nnx.Module):
    """relu(BN(W x)), with a 1×1 convolution W.

    Parameters: c_in·c_out + 2c_out, and c_out with a bias.

    Args:
        in_features: c_in.
        out_features: c_out.
        use_bias: whether the convolution has a bias.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = nnx.Linear(in_features, out_features, use_bias=use_bias, **layer)
        self.norm = BatchNorm(out_features, **layer)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w d"]:
        """The map transformed."""
        return jax.nn.relu(self.norm(self.conv(x)))

    def cost(self, n: int) -> Cost:
        """For n positions."""
        c_in, c_out = self.conv.in_features, self.conv.out_features
        return Cost(c_in * c_out + (3 if self.conv.use_bias else 2) * c_out, n * c_in * c_out)


class BilinearAttentionTransform(nnx.Module):
    """The block of a bilinear attentional transform, on maps whose sides the block size divides.

    Parameters: 2c·m + m² + (4 + k)m + 2c + 2k + 2s³k² + 2s²k with m features inside, and c + 2m + k with biases.
    Multiply-adds: n·(2c·m + m² + m·k + 2m·s) + 2s³·k².

    Args:
        channels: c.
        reduction: r.
        hidden: m, by default ⌊c/r⌋ and at least 1; the groups must divide it.
        block_size: s.
        groups: k.
        dropout_rate: the share of the channels of the block that are dropped in training.
        use_bias: whether the convolutions before the batch norms have biases.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters and of the dropout.

    Raises:
        InputError: a size below 1, groups that do not divide the features inside or a rate outside [0, 1) at
            construction; at the call, an input that is no map of these channels or whose sides s does not divide.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        hidden: int | None = None,
        block_size: int = 4,
        groups: int = 4,
        dropout_rate: float = 0.2,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden)
        check(block_size >= 1, f"block_size must be at least 1, got {block_size}.")
        check(
            groups >= 1 and hidden % groups == 0,
            f"groups must be at least 1 and divide the {hidden} features inside, got {groups}.",
        )
        check(0 <= dropout_rate < 1, f"dropout_rate must be in [0, 1), got {dropout_rate}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        s, numbers = block_size, groups * block_size**2
        self.reduce = ConvNormRelu(channels, hidden, use_bias=use_bias, **layer)
        self.summarize = ConvNormRelu(hidden, groups, use_bias=use_bias, **layer)
        self.row = nnx.Conv(groups, numbers, (s, 1), padding="VALID", **layer)
        self.column = nnx.Conv(groups, numbers, (1, s), padding="VALID", **layer)
        self.mix = ConvNormRelu(hidden, hidden, use_bias=use_bias, **layer)
        self.expand = ConvNormRelu(hidden, channels, use_bias=use_bias, **layer)
        self.dropout = nnx.Dropout(dropout_rate, broadcast_dims=(-3, -2), rngs=rngs)
        self.block_size = block_size

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """P as "rows" and Q as "columns", an s×s matrix for each group."""
        p, q = self._matrices(self.reduce(self._map(x)))
        return {"rows": p, "columns": q}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        z = self.reduce(x)
        return x + self.dropout(self.expand(self.mix(bat(z, *self._matrices(z)))))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, _ = shape
        n, s, k, hidden = h * w, self.block_size, self.row.in_features, self.mix.conv.in_features
        costs = [layer.cost(n) for layer in (self.reduce, self.summarize, self.mix, self.expand)]
        matrices = 2 * s**3 * k**2
        return Cost(
            sum(cost.parameters for cost in costs) + matrices + 2 * s**2 * k,
            sum(cost.multiply_adds for cost in costs) + matrices + 2 * n * hidden * s,
        )

    def _matrices(self, z):
        return bat_weights(self.summarize(z), self.row, self.column, block_size=self.block_size)

    def _map(self, x):
        check_map(x, self.reduce.conv.in_features)
        return promote(x, self.reduce.conv)


def _normalized_sigmoid(y):
    """sigmoid(y) / Σ sigmoid(y) along the last axis, as a softmax of logarithms: no sum of it can underflow."""
    return ops.softmax(jax.nn.log_sigmoid(y.astype(ops.at_least_float32(y.dtype)))).astype(y.dtype)
