"""What the decoder of a detection transformer starts from, and the heads that make classes and boxes of tokens."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import LayerNorm, Perceptron
from attn_flax.models.detr.attention import Cells

CELLS_OF_A_PROPOSAL = 3
NEAREST_TO_BORDER = 1e-3
"""Coordinates are kept so far from 0 and 1 where they are corrected."""


class Queries(NamedTuple):
    """Where the decoder starts.

    Attributes:
        content: (*b, n, c).
        boxes: the reference boxes (*b, n, 4), where there are any.
        position: (n, c), where there are none.
    """

    content: Float[Array, "*b n c"]
    boxes: Float[Array, "*b n 4"] | None = None
    position: Float[Array, "n c"] | None = None


class Heads(nnx.Module):
    """The logits of the classes and the box of each token.

    Args:
        width: of the tokens.
        num_logits: of each token.
        prior: the probability of each class at first, if each has a sigmoid.
        corrects: whether boxes are corrections, at first of nothing.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        width: int,
        num_logits: int,
        *,
        prior: float | None,
        corrects: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        bias = math.log(prior / (1 - prior)) if prior else 0.0
        self.norm = LayerNorm(width, **types)
        self.classify = nnx.Linear(width, num_logits, bias_init=nnx.initializers.constant(bias), **types)
        self.locate = Perceptron(width, width, 4, **types)
        if corrects:
            self.locate.expand.kernel.set_value(jnp.zeros((width, 4), param_dtype))

    def __call__(self, x: Float[Array, "*s c"], boxes: Float[Array, "..."] | None) -> dict[str, Float[Array, "..."]]:
        """Their "logits" (*s, k) and "boxes" (*s, 4), which correct those given, if any; in float32 or wider."""
        x = self.norm(x)
        logits, offset = (y.astype(ops.at_least_float32(y.dtype)) for y in (self.classify(x), self.locate(x)))
        if boxes is not None:
            kept = jnp.clip(boxes, NEAREST_TO_BORDER, 1 - NEAREST_TO_BORDER)
            offset = offset + jax.scipy.special.logit(kept)
        return {"logits": logits, "boxes": jax.nn.sigmoid(offset)}


class LearnedQueries(nnx.Module):
    """Queries without content, whose positions are learned.

    Args:
        width: c.
        num_queries: n.
        dtype: the type to compute in; by default that of the parameters.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        width: int,
        num_queries: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.position = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (num_queries, width), param_dtype))

    def __call__(self, memory: Float[Array, "*b m c"], cells: Cells) -> tuple[Queries, None]:
        """The queries, the same for all images."""
        position = self.position[...].astype(memory.dtype)
        return Queries(jnp.zeros((*memory.shape[:-2], *position.shape), memory.dtype), position=position), None


class LearnedBoxes(nnx.Module):
    """Queries whose content and reference boxes are learned.

    Args:
        width: c.
        num_queries: n.
        dtype: the type to compute in; by default that of the parameters.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        width: int,
        num_queries: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.content = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (num_queries, width), param_dtype))
        anywhere = jax.random.uniform(rngs.params(), (num_queries, 4), param_dtype, 0.05, 0.95)
        self.boxes = nnx.Param(jax.scipy.special.logit(anywhere))

    def __call__(self, memory: Float[Array, "*b m c"], cells: Cells) -> tuple[Queries, None]:
        """The queries, the same for all images."""
        content, boxes = self.content[...].astype(memory.dtype), jax.nn.sigmoid(self.boxes[...])
        batch = memory.shape[:-2]
        return Queries(*(jnp.broadcast_to(x, (*batch, *x.shape)) for x in (content, boxes))), None


class Proposals(nnx.Module):
    """The tokens that are likeliest to be objects, as queries.

    Args:
        width: c.
        num_queries: n, of tokens.
        heads: those of the tokens.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        width: int,
        num_queries: int,
        *,
        heads: Heads,
        focal: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.content = nnx.Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.num_queries = num_queries
        self.focal = focal

    def __call__(self, memory: Float[Array, "*b m c"], cells: Cells) -> tuple[Queries, dict[str, Float[Array, "..."]]]:
        """The queries, whose boxes are constants to their gradients, and what all tokens propose."""
        check(
            memory.shape[-2] >= self.num_queries,
            f"num_queries must be at most the cells of the maps, got {self.num_queries} for maps of {cells.sizes}.",
        )
        proposals = self.heads(memory, jnp.concatenate([cells.centres, CELLS_OF_A_PROPOSAL * cells.extents], -1))
        logits = proposals["logits"]
        objectness = logits.max(-1) if self.focal else -jax.nn.log_softmax(logits)[..., -1]
        best = jax.lax.top_k(objectness, self.num_queries)[1][..., None]
        content, boxes = (jnp.take_along_axis(x, best, -2) for x in (memory, proposals["boxes"]))
        return Queries(self.content(content), jax.lax.stop_gradient(boxes)), proposals
