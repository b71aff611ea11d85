"""What the explanations refuse."""

import jax.numpy as jnp
import pytest

from attn_flax.checks import InputError
from attn_flax.explain import attention_rollout


def test_an_unknown_way_to_fuse_heads():
    with pytest.raises(InputError, match="fuse must be 'mean', 'max' or 'min', got 'sum'"):
        attention_rollout([jnp.ones((2, 3, 5, 5))], fuse="sum")
