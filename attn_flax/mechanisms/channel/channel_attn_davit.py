"""Channel group attention of DaViT.

    A_g = softmax(Q_gᵀ K_g / √d)           attention between the d channels of group g
    Y_g = V_g A_gᵀ                         y_ni = Σ_j A_ij v_nj for position n and channel i
    y = W_o [Y_1 … Y_G] + b_o

for N positions, with Q = x W_q, K = x W_k and V = x W_v of c channels in G groups of d = c/G. A channel is a token
whose features are its values at all positions, so each looks at whole maps: the cost is linear in N, and positions are
mixed by the weights alone.

Differs from the paper: nothing. The paper's groups have d = 32 channels, as here where 32 divides c. `use_bias` gives
the three layers biases; `dynamic_scale` divides by √N instead of √d, as a later version in timm does.

Errors elsewhere: the authors' code and timm's ChannelAttention name the three layers in another order, softmax(kᵀ v)
applied to q, so their weights of k, v and q are ours of query, key and value; timm's ChannelAttentionV2 names them as
here.

Source: Ding, Xiao, Codella, Luo, Wang and Yuan, "DaViT: Dual Attention Vision Transformers" (2022), arXiv:2204.03645;
compared with the authors' code, dingmyu/davit.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels, flatten_positions, promote

GROUP_CHANNELS = 32


def channel_group_attention_weights(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b n k d"], *, scale: float | None = None
) -> Float[Array, "*b k d d"]:
    """A = softmax(scale · Qᵀ K) for each group of channels, rows sum to one; in float32 or wider.

    Args:
        q: the queries, (*b, positions, groups, channels of a group).
        k: the keys, likewise.
        scale: d^(-1/2) by default.
    """
    wide = ops.at_least_float32(q.dtype)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return ops.softmax(scale * jnp.einsum("...nkd,...nke->...kde", q, k, preferred_element_type=wide))


def channel_group_attention(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b n k d"],
    v: Float[Array, "*b n k d"],
    *,
    scale: float | None = None,
) -> Float[Array, "*b n k d"]:
    """y_ni = Σ_j A_ij v_nj for each group, with the `channel_group_attention_weights` A of the same arguments.

    >>> x = jnp.arange(4.0).reshape(2, 1, 2)
    >>> channel_group_attention(0 * x, x, x).squeeze()  # no channel stands out: the mean of all
    Array([[0.5, 0.5],
           [2.5, 2.5]], dtype=float32)
    """
    weights = channel_group_attention_weights(q, k, scale=scale).astype(v.dtype)
    return jnp.einsum("...kde,...nke->...nkd", weights, v)


class ChannelGroupAttention(nnx.Module):
    """Attention between the channels of a map, in groups.

    Parameters: 4c² + c, and 3c with `use_bias`. Multiply-adds: 4n·c² + 2n·c²/G for n positions.

    Args:
        channels: c; the groups must divide it.
        groups: G, by default c/32 where 32 divides c, else 1.
        use_bias: whether the layers of q, k and v have biases.
        dynamic_scale: whether products are divided by √n, else by √d.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes
            and video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: groups that do not divide the channels or a size below 1 at construction; channels or axes that do
            not fit at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int | None = None,
        use_bias: bool = False,
        dynamic_scale: bool = False,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        if groups is None:
            groups = 1 if channels % GROUP_CHANNELS else channels // GROUP_CHANNELS
        check(
            groups >= 1 and channels % groups == 0,
            f"groups must be at least 1 and divide channels, got groups={groups}, channels={channels}.",
        )
        check(num_spatial_dims >= 1, f"num_spatial_dims must be at least 1, got {num_spatial_dims}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query, self.key, self.value = (
            nnx.Linear(channels, channels, use_bias=use_bias, **layer) for _ in range(3)
        )
        self.project = nnx.Linear(channels, channels, **layer)
        self.groups = groups
        self.dynamic_scale = dynamic_scale
        self.num_spatial_dims = num_spatial_dims

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k d d"]:
        """A, the weights between the channels of each group."""
        x = self._positions(x)
        q, k = (self._grouped(layer(x)) for layer in (self.query, self.key))
        return channel_group_attention_weights(q, k, scale=self._scale(x)).astype(x.dtype)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x: any batch axes, `num_spatial_dims` axes of positions, channels."""
        positions = self._positions(x)
        q, k, v = (self._grouped(layer(positions)) for layer in (self.query, self.key, self.value))
        return self.project(channel_group_attention(q, k, v, scale=self._scale(positions)).reshape(x.shape))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        biases = 4 * c if self.query.use_bias else c
        return Cost(4 * c * c + biases, math.prod(positions) * (4 * c * c + 2 * c * c // self.groups))

    def _positions(self, x):
        check_channels(x, self.query.in_features)
        return flatten_positions(promote(x, self.query), self.num_spatial_dims)

    def _grouped(self, x):
        return x.reshape(*x.shape[:-1], self.groups, -1)

    def _scale(self, x):
        return x.shape[-2] ** -0.5 if self.dynamic_scale else None
