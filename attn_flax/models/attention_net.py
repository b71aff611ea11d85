"""The article's classification network.

    x -> conv 3×3, 64 -> attention(64) -> conv 3×3, 128 -> average pool to 8×8 -> linear 512 -> linear classes

Differs from the article: the listing flattens 128·8·8 features whatever the input's size, so it only fits 8×8 images;
here the map is averaged to 8×8 first, which leaves those as they are. Like the listing it has no non-linearity between
its layers unless `activation` says so: the attention is then the only one. Maps are flattened with channels last.

Source: the article's section 4.
"""

from collections.abc import Callable
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier
from attn_flax.nn import ArticleGate


class AttentionNet(Classifier):
    """The article's network; 4,276,690 parameters with its gate, 3 input channels and 10 classes.

    Args:
        num_classes: the number of logits.
        in_channels: of the images.
        attention: a factory of the mechanism after the first convolution, or None for none.
        activation: applied after both convolutions and the first linear layer; None, the article's, applies nothing.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction, images of other channels at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        attention: AttentionFactory | None = ArticleGate,
        activation: Callable | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(num_classes >= 1, f"num_classes must be at least 1, got {num_classes}.")
        check(in_channels >= 1, f"in_channels must be at least 1, got {in_channels}.")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv1 = nnx.Conv(in_channels, 64, (3, 3), **types, rngs=rngs)
        self.attention = nnx.data(attention(64, rngs=rngs) if attention else None)
        self.conv2 = nnx.Conv(64, 128, (3, 3), conv_general_dilated=ops.conv_general_dilated, **types, rngs=rngs)
        self.linear1 = nnx.Linear(128 * 8 * 8, 512, **types, rngs=rngs)
        self.linear2 = nnx.Linear(512, num_classes, **types, rngs=rngs)
        self.activation = activation

    @property
    def head(self) -> nnx.Module:
        """The layer of the logits."""
        return self.linear2

    @head.setter
    def head(self, layer: nnx.Module) -> None:
        self.linear2 = layer

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b h w d"]]:
        """The maps after both convolutions, the first with its attention, as large as the images."""
        check(
            x.ndim >= 3 and x.shape[-1] == self.conv1.in_features,
            f"x must be images (*b, h, w, {self.conv1.in_features}), got shape {x.shape}.",
        )
        x = self._activate(self.conv1(x))
        if self.attention is not None:
            x = self.attention(x)
        return [x, self._activate(self.conv2(x))]

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w d"]:
        """The last of the maps."""
        return self.features(x)[-1]

    def pool(self, x: Float[Array, "*b h w d"]) -> Float[Array, "*b f"]:
        """What the first linear layer makes of the map averaged to 8×8."""
        x = ops.adaptive_average_pool(x, (8, 8))
        return self._activate(self.linear1(x.reshape(*x.shape[:-3], -1)))

    def _activate(self, x):
        return self.activation(x) if self.activation else x


MODELS = MappingProxyType({"attention_net": (AttentionNet, {})})
