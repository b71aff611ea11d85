"""The Fréchet distance between the features of two sets of images.

    d² = ‖μ_1 - μ_2‖² + tr(Σ_1 + Σ_2 - 2 (Σ_1 Σ_2)^½)

with the means μ and covariances Σ of what a classifier computes before its last layer: the distance between two normal
distributions of these moments. With the Inception network of its authors it is known as FID; with features of another
classifier, as here, its values compare with those of the same classifier only. Few images make it larger, so that only
distances between sets of the same sizes compare.

Source: Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, "GANs Trained by a Two Time-Scale Update Rule Converge to
a Local Nash Equilibrium" (2017), arXiv:1706.08500; Dowson and Landau, "The Fréchet distance between multivariate normal
distributions" (1982).
"""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.ops import at_least_float32


def feature_sums(features: Float[Array, "b d"], weight: Float[Array, " b"]) -> dict[str, Array]:
    """n, Σ f and Σ f fᵀ of features, row i counted weight_i times; they add up over batches."""
    features = features.astype(at_least_float32(features.dtype))
    weighted = features * weight[:, None]
    return {"count": weight.sum(), "sum": weighted.sum(0), "outer": weighted.T @ features}


def moments(sums: Mapping[str, ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the unbiased covariance of the features that were added up, in float64.

    Raises:
        InputError: fewer than two.
    """
    count, total, outer = (np.asarray(sums[name], np.float64) for name in ("count", "sum", "outer"))
    check(bool(count >= 2), f"a covariance needs at least two images, got {count:.0f}.")
    return total / count, (outer - np.outer(total, total) / count) / (count - 1)


def frechet_distance(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """d² between two normal distributions, each its mean (d,) and covariance (d, d).

    The trace of (Σ_1 Σ_2)^½ is that of (Σ_1^½ Σ_2 Σ_1^½)^½, a symmetric matrix, whose eigenvalues are not negative.

    >>> frechet_distance((np.zeros(2), np.eye(2)), (np.array([3.0, 4.0]), 4 * np.eye(2)))
    27.0
    """
    (mean, covariance), (other_mean, other_covariance) = one, other
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ other_covariance @ root).clip(0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(covariance + other_covariance) - 2 * trace)
