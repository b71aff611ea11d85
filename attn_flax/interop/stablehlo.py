"""Networks as StableHLO, a program with its parameters that runs without this library."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jaxtyping import Array, Float

from attn_flax.checks import InputError
from attn_flax.training import Network


def to_stablehlo(
    model: nnx.Module, shape: Sequence[int], *, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
) -> bytes:
    """The network in evaluation mode as `jax.export` serialises it, for batches of any size.

    Args:
        model: from a batch of float32 arrays to arrays.
        shape: of one example, as (224, 224, 3).
        platforms: those it will run on, out of cpu, cuda, rocm and tpu.

    Raises:
        InputError: flatbuffers, which the extra "export" brings, is not installed.
    """
    network, params, state = Network.split(model)
    batch = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), *shape), jnp.float32)
    exported = export.export(jax.jit(lambda x: network.merge(params, state)(x)), platforms=platforms)(batch)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise InputError(f"export needs flatbuffers: pip install 'attn_flax[export]' ({error}).") from None


def from_stablehlo(program: bytes) -> Callable[[Float[Array, "b ..."]], Array]:
    """The function that `to_stablehlo` wrote, for those who have JAX alone.

    >>> from attn_flax.models import create_model
    >>> model = create_model("attention_net", num_classes=3, rngs=nnx.Rngs(0))
    >>> from_stablehlo(to_stablehlo(model, (8, 8, 3)))(jnp.ones((2, 8, 8, 3))).shape
    (2, 3)
    """
    return jax.jit(export.deserialize(bytearray(program)).call)
