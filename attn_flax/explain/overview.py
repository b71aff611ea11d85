"""All that there is to say of what a classifier made of images."""

import contextlib

import jax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from attn_flax.checks import InputError
from attn_flax.explain.grad_cam import attribution
from attn_flax.explain.maps import attention_maps
from attn_flax.explain.rollout import attention_rollout


def explanations(model: nnx.Module, images: Float[Array, "b h w c"]) -> dict[str, PyTree]:
    """What `draw_attention_maps` draws of a classifier that looks at images, by its title.

    The maps of all attending Modules; where the outputs of each speak for the predicted class, as `attribution` gives
    it; and the rollout of all maps among tokens, if they are of one size.
    """
    maps = attention_maps(model, images)
    found = dict(maps)
    for path in maps:
        with contextlib.suppress(InputError):  # a Module that is called twice, or gives no map
            found[f"{path or 'network'} for the class"] = attribution(model, images, at=path)
    among_tokens = [weights for weights in maps.values() if _is_among_tokens(weights)]
    if len({weights.shape for weights in among_tokens}) == 1:
        found["rollout"] = attention_rollout(among_tokens)
    return found


def _is_among_tokens(weights):
    """Whether it is a map (b, n, n) or (b, k, n, n)."""
    return isinstance(weights, jax.Array) and weights.ndim in (3, 4) and weights.shape[-1] == weights.shape[-2] > 1
