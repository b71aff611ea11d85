"""Batches mixed with themselves, on the device: every image is paired with its mirror in the batch's order."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Images = Float[Array, "b h w c"]
Targets = Float[Array, "b k"]


def mixup(key: PRNGKeyArray, images: Images, targets: Targets, *, alpha: float) -> tuple[Images, Targets]:
    """λ x + (1-λ) x', and the targets likewise, with one λ ~ Beta(α, α) for the batch.

    Source: Zhang, Cissé, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization, 2018, arXiv:1710.09412. Differs
    from the paper: the partner is the mirror image in the batch's order, which is random already, not a permutation.
    """
    share = jax.random.beta(key, alpha, alpha).astype(images.dtype)
    return _blend(share, images), _blend(share.astype(targets.dtype), targets)


def cutmix(key: PRNGKeyArray, images: Images, targets: Targets, *, alpha: float) -> tuple[Images, Targets]:
    """A box of every image is replaced by its partner's; the targets are mixed by the box's share of the area.

    With λ ~ Beta(α, α), the box has √(1-λ) of the height and width around a uniform centre, cut off at the borders; the
    share is that of the box that remains.

    Source: Yun, Han, Oh, Chun, Choe, Yoo: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features, 2019, arXiv:1905.04899. Differs from the paper: partners as in `mixup`.
    """
    share_key, *centre_keys = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    rows, columns = (_interval(k, size, side) for k, size in zip(centre_keys, images.shape[1:3], strict=True))
    box = rows[:, None] & columns[None, :]
    mixed = jnp.where(box[..., None], images[::-1], images)
    return mixed, _blend(1 - box.mean(dtype=targets.dtype), targets)


def _blend(share, x):
    return share * x + (1 - share) * x[::-1]


def _interval(key, size, side):
    half = (size * side / 2).astype(jnp.int32)
    centre = jax.random.randint(key, (), 0, size)
    position = jnp.arange(size)
    return (centre - half <= position) & (position < centre + half)
