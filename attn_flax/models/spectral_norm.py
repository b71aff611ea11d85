"""Layers divided by their largest singular value.

    y = W x / σ(W) + b

makes a layer 1-Lipschitz. The kernel of a convolution is a matrix of (rows · columns · input channels) × output
channels.

Unlike nnx.SpectralNorm, which writes the divided kernel into the layer, and divides again at the next call, this one
leaves the layer's parameters as they are: being linear, it is given x / σ.

Source: Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial Networks" (2018),
arXiv:1802.05957.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from attn_flax import ops


class SpectralNorm(nnx.Module):
    """A linear layer whose kernel is divided by its spectral norm.

    In training each call makes a step of power iteration, and keeps its vector for the next one; in evaluation nothing
    is kept.

    Args:
        layer: nnx.Linear or nnx.Conv; its bias is left as it is.
        rngs: the source of the first vector.
    """

    def __init__(self, layer: nnx.Linear | nnx.Conv, *, rngs: nnx.Rngs):
        self.layer = layer
        self.u = nnx.BatchStat(jax.random.normal(rngs.params(), layer.kernel.shape[-1:], layer.param_dtype))
        self.use_running_average = False  # Flax's name for what train() and eval() set

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s d"]:
        """The layer's output."""
        kernel = self.layer.kernel[...]
        sigma, u = ops.spectral_norm(kernel.reshape(-1, kernel.shape[-1]), self.u[...])
        if not self.use_running_average:
            self.u[...] = u
        return self.layer(x / sigma.astype(x.dtype))
