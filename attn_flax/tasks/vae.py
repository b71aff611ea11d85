"""Images by latent variables, learned by the evidence lower bound.

    log p(x) >= E_q(z|x)[log p(x | z)] - KL(q(z | x) ‖ N(0, I))
    KL = ½ Σ (μ² + σ² - 1 - log σ²)

with q(z | x) = N(μ(x), σ²(x)). The likelihood is a proper one of pixels that have L levels, 256 in 8-bit images: each
has a logistic distribution of its own location and scale in [-1, 1], cut into L bins, the outer ones without end. The
data stay discrete: no noise is added to them. So bits per dimension, the bound's negative over the number of pixel
values and ln 2, are those of a code for the images, and compare over all models of the same levels; uniform pixels
take log₂ L.

Differs from the paper: the likelihood, there of binary or of real pixels; β weighs the divergence in training, while
bits per dimension are always those of β = 1.

Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), arXiv:1312.6114; β is of Higgins, Matthey, Pal,
Burgess, Glorot, Botvinick, Mohamed and Lerchner, "beta-VAE" (2017); the likelihood of Kingma, Salimans, Jozefowicz,
Chen, Sutskever and Welling, "Improving Variational Inference with Inverse Autoregressive Flow" (2016),
arXiv:1606.04934.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from attn_flax.checks import check
from attn_flax.ops import at_least_float32
from attn_flax.tasks.pixels import Standardization, normal_for_images
from attn_flax.training import Learning, Network, TrainState, reduce_over

SMALLEST_LOG_SCALE = -7.0
"""A scale of e⁻⁷ leaves next to nothing outside one bin of 256; log s is never below it, as in PixelCNN++."""


def log_discretized_logistic(
    levels: Float[Array, "*s"], location: Float[Array, "*s"], log_scale: Float[Array, "*s"], count: int
) -> Float[Array, "*s"]:
    """log p of a level 0, 1, …, L-1: a logistic distribution over [-1, 1], cut into L bins.

        p(l) = S((x + δ - μ) / s) - S((x - δ - μ) / s),   x = 2l / (L-1) - 1,   δ = 1 / (L-1)

    with the logistic function S, which in the outer bins is taken to 0 and to 1. Computed as
    log S(a) + log S(-b) + log(1 - exp(b - a)), which loses no digits where both are close.

    Args:
        levels: l, whole numbers.
        location: μ.
        log_scale: log s.
        count: L.

    >>> log_p = log_discretized_logistic(jnp.arange(5.0), jnp.full(5, 0.3), jnp.full(5, -1.0), 5)
    >>> float(jnp.exp(log_p).sum().round(5))
    1.0
    """
    x, half = 2 * levels / (count - 1) - 1, 1 / (count - 1)
    inverse = jnp.exp(-log_scale)
    lowest, highest = levels == 0, levels == count - 1
    above = jnp.where(highest, 0.0, jax.nn.log_sigmoid((x + half - location) * inverse))
    below = jnp.where(lowest, 0.0, jax.nn.log_sigmoid((location - x + half) * inverse))
    between = jnp.where(lowest | highest, 0.0, jnp.log(-jnp.expm1(-2 * half * inverse)))
    return above + below + between


def kl_divergence(mean: Float[Array, "b l"], log_variance: Float[Array, "b l"]) -> Float[Array, " b"]:
    """KL(N(μ, σ²) ‖ N(0, I)) in nats.

    >>> kl_divergence(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2)))
    Array([0.5], dtype=float32)
    """
    return 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(-1)


def reconstruct(model: nnx.Module, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Pixels in [0, 1]: the locations of p(x | z) at the means of q(z | x) of standardised images."""
    mean, _ = model.encode(images)
    return decoded(model, mean)


def sample(model: nnx.Module, key: jax.Array, count: int) -> Float[Array, "b h w c"]:
    """Pixels in [0, 1]: the locations of p(x | z) at z ~ N(0, I)."""
    return decoded(model, jax.random.normal(key, (count, model.latent_features)))


def interpolate(
    model: nnx.Module, one: Float[Array, "b h w c"], other: Float[Array, "b h w c"], steps: int
) -> Float[Array, "b {steps} h w c"]:
    """Pixels in [0, 1] on the straight way from the mean of q(z | one) to that of q(z | other), both included."""
    check(steps >= 2, f"steps must be at least 2, got {steps}.")
    start, end = (model.encode(images)[0] for images in (one, other))
    way = jnp.linspace(start, end, steps, axis=1)
    pixels = decoded(model, way.reshape(-1, way.shape[-1]))
    return pixels.reshape(*way.shape[:2], *pixels.shape[1:])


def decoded(model: nnx.Module, z: Float[Array, "b l"]) -> Float[Array, "b h w c"]:
    """Pixels in [0, 1]: the locations of p(x | z)."""
    location, _ = model.decode(z)
    return ((location + 1) / 2).clip(0, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Vae:
    """The evidence lower bound of images, in bits per dimension.

    A batch has "image" (b, h, w, c), in evaluation also "weight" (b,). The bound takes one z for each image.

    Attributes:
        model: from standardised images and noise (b, its `latent_features`) to μ and log σ² of q(z | x), and to the
            locations and log-scales of p(x | z).
        learning: how gradients move its parameters.
        mean: by which the data's images are standardised.
        std: likewise.
        levels: L, how many values a pixel has, evenly from 0 to 1: the data's pixels are rounded to the next of them.
        beta: β, the weight of the divergence in training.

    Raises:
        InputError: a mean and std that do not fit each other, levels below 2, or a negative β.
    """

    model: nnx.Module
    learning: Learning
    mean: Sequence[float]
    std: Sequence[float]
    levels: int = 256
    beta: float = 1.0

    def __post_init__(self):
        check(self.levels >= 2, f"levels must be at least 2, got {self.levels}.")
        check(self.beta >= 0, f"beta must not be negative, got {self.beta}.")
        self._standardization  # noqa: B018 refuses a mean and std that do not fit

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step, from the model's own parameters; `key` drives the noise."""
        _, params, model_state = Network.split(self.model)
        return self.learning.init(params, model_state, key)

    def update(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> tuple[TrainState, PyTree]:
        """One step; the metrics are, in bits per dimension, the loss, the bound and its two parts."""
        network, _, _ = Network.split(self.model)

        def loss(params, model_state, batch, key):
            noise_key, key = jax.random.split(key)
            images = batch["image"]
            noise = jax.random.normal(noise_key, (len(images), self.model.latent_features))
            out, model_state = network.train(params, model_state, images, noise, key=key, axis=axis)
            bits = jax.tree.map(lambda nats: (nats / _nats_per_bit(images)).mean(), self._nats(images, out))
            mean_loss = bits["distortion"] + self.beta * bits["rate"]
            metrics = {"loss": mean_loss, "bits_per_dim": bits["distortion"] + bits["rate"], **bits}
            return mean_loss, (model_state, metrics)

        return self.learning.update(loss, state, batch, axis=axis)

    def evaluate(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> PyTree:
        """The sums of both parts of the bound, in bits per dimension, and of the weights."""
        images = batch["image"]
        noise = normal_for_images(images, (self.model.latent_features,))
        nats = self._nats(images, self.module(state)(images, noise))
        sums = jax.tree.map(lambda nats: (nats / _nats_per_bit(images) * batch["weight"]).sum(), nats)
        return reduce_over(axis, sums | {"count": batch["weight"].sum()})

    def module(self, state: TrainState) -> nnx.Module:
        """The network with the state's parameters, in evaluation mode."""
        network, _, _ = Network.split(self.model)
        return network.merge(*state.evaluated)

    def summarize(self, sums: PyTree) -> dict[str, float]:
        """The bound and its two parts, all in bits per dimension: what the images cost given z, and what z costs."""
        distortion, rate = (float(sums[name] / sums["count"]) for name in ("distortion", "rate"))
        return {"bits_per_dim": distortion + rate, "distortion": distortion, "rate": rate}

    def score(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Minus the bits per dimension."""
        return (-metrics["bits_per_dim"],)

    @property
    def _standardization(self):
        return Standardization(self.mean, self.std)

    def _nats(self, images, out):
        """-log p(x | z) and the divergence of each image."""
        mean, log_variance, location, log_scale = (x.astype(at_least_float32(x.dtype)) for x in out)
        levels = jnp.rint(self._standardization.pixels(images) * (self.levels - 1)).clip(0, self.levels - 1)
        log_scale = jnp.maximum(log_scale, SMALLEST_LOG_SCALE)
        log_p = log_discretized_logistic(levels, location, log_scale, self.levels)
        return {"distortion": -log_p.sum((1, 2, 3)), "rate": kl_divergence(mean, log_variance)}


def _nats_per_bit(images):
    """So many nats are one bit per dimension."""
    return math.prod(images.shape[1:]) * math.log(2)
