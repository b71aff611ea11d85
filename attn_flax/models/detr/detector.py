"""A detection transformer: the objects of an image as a set, without anchors to enumerate or duplicates to suppress.

    z = encoder(backbone(x))           tokens, one for each cell of the map, with fixed sine positions
    q = decoder(queries, z)            a fixed number of queries, which attend to each other and to z
    classes, boxes = heads(q)          after every layer of the decoder

Each query claims one object or none; which one, the task settles by matching them. Plain DETR learns its queries, and
needs to be trained for very long. What the arguments add, each by its paper:

- `two_stage`: the encoder's tokens propose boxes, and the best proposals become the queries: their boxes are references
  to start from (Zhu et al. 2021), their tokens the content (Yao et al. 2021).
- `refine`: each layer of the decoder corrects the reference boxes that the one before left, and which are constants to
  its gradient (Zhu et al. 2021).
- `modulate`: the decoder looks at the image through Gaussian windows around the reference boxes (Gao et al. 2021).
- `focal`: each class has a sigmoid of its own, for the focal loss, instead of a softmax over the classes and one logit
  more, the last, of no object (Lin et al. 2017).
- denoising queries, which are given at the call: the truth with noise, to be repaired (Li et al. 2022). They see the
  other queries and those that the task says; no other query sees them.
- `encoder="deformable"`: tokens attend to a few samples of maps of several sizes (Zhu et al. 2021).

Wherever there are reference boxes, a query's position is a perceptron of the sines of its box (Liu et al. 2022), and if
they are not proposals they are learned.

Differs from the papers: the position of a token is the sine of the middle of its cell, as in Deformable DETR; layers
are those of `layers`; the perceptron of boxes has two layers instead of three; the layers of the decoder share
their heads also where they refine; proposals start from boxes of three cells, and are classified; denoising queries
have no mark but their content, the embedding of their class.

Source: Carion, Massa, Synnaeve, Usunier, Kirillov and Zagoruyko, "End-to-End Object Detection with Transformers"
(2020), arXiv:2005.12872. Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection" (2021),
arXiv:2010.04159. Yao et al., "Efficient DETR: Improving End-to-End Object Detector with Dense Prior" (2021),
arXiv:2104.01318. Gao et al., "Fast Convergence of DETR with Spatially Modulated Co-Attention" (2021), arXiv:2101.07448.
Lin et al., "Focal Loss for Dense Object Detection" (2017), arXiv:1708.02002. Liu et al., "DAB-DETR: Dynamic Anchor
Boxes are Better Queries for DETR" (2022), arXiv:2201.12329. Li et al., "DN-DETR: Accelerate DETR Training by
Introducing Query DeNoising" (2022), arXiv:2203.01305.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import LayerNorm, Perceptron
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.detr.attention import Cells
from attn_flax.models.detr.layers import DecoderLayer, DeformableEncoderLayer, EncoderLayer
from attn_flax.models.detr.queries import Heads, LearnedBoxes, LearnedQueries, Proposals, Queries
from attn_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from attn_flax.models.small_resnet import SmallResNet

Encoder = Literal["dense", "deformable"]
ENCODERS = {"dense": EncoderLayer, "deformable": DeformableEncoderLayer}
PRIOR = 0.01
"""The probability of each class at first, where it has a sigmoid; the focal loss needs it low."""

Noised = tuple[Int[Array, "*b d"], Float[Array, "*b d 4"], Bool[Array, "*b d d"]]


class Detr(nnx.Module):
    """A detector of up to `num_queries` objects; the additions to the paper are off by default.

    Args:
        num_classes: of the objects.
        backbone: a factory (num_classes, *, in_channels, attention, rngs, …) of a network with `features(x)`, maps of
            an image, the largest first, of `feature_channels` channels.
        in_channels: of the images.
        attention: a factory of the mechanism in the backbone's blocks, or None for none.
        width: c of all tokens, a multiple of 4.
        num_heads: of all attentions; must divide c.
        encoder: "dense", every token attends to every other, or "deformable".
        encoder_layers: their number; 0 for none.
        decoder_layers: their number.
        levels: how many of the backbone's last maps give tokens.
        num_queries: how many objects an image may have.
        two_stage: whether the queries are proposals of the encoder.
        refine: whether each layer of the decoder corrects the boxes of the one before.
        modulate: whether the decoder looks through windows around the reference boxes.
        focal: whether each class has a sigmoid of its own; else the logits are one more than the classes, the last that
            of no object.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size that is refused, or more levels than the backbone has maps, at construction; at the call,
            images that the backbone refuses or with fewer cells than queries, or denoising queries without reference
            boxes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: Callable[..., nnx.Module],
        in_channels: int = 3,
        attention: AttentionFactory | None = None,
        width: int = 256,
        num_heads: int = 8,
        encoder: Encoder = "dense",
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        levels: int = 1,
        num_queries: int = 100,
        two_stage: bool = False,
        refine: bool = False,
        modulate: bool = False,
        focal: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (
            ("num_classes", num_classes),
            ("decoder_layers", decoder_layers),
            ("levels", levels),
            ("num_queries", num_queries),
        ):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(encoder_layers >= 0, f"encoder_layers must be at least 0, got {encoder_layers}.")
        check(encoder in get_args(Encoder), f"encoder must be 'dense' or 'deformable', got {encoder!r}.")
        check(width % 4 == 0, f"width must be a multiple of 4, got {width}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone = backbone(1, in_channels=in_channels, attention=attention, **types)
        channels = self.backbone.feature_channels
        check(levels <= len(channels), f"levels must be at most the backbone's {len(channels)} maps, got {levels}.")
        self.reduce = nnx.List([nnx.Linear(c, width, **types) for c in channels[-levels:]])
        self.reduce_norms = nnx.List([LayerNorm(width, **types) for _ in range(levels)])
        self.level_position = nnx.data(nnx.Embed(levels, width, **types) if levels > 1 else None)
        layer = partial(ENCODERS[encoder], width, num_heads, levels=levels, **types)
        self.encoder = nnx.List([layer() for _ in range(encoder_layers)])
        self.memory_norm = LayerNorm(width, **types)
        has_boxes = two_stage or refine or modulate
        heads = partial(
            Heads, width, num_classes + (not focal), prior=PRIOR if focal else None, corrects=has_boxes, **types
        )
        if two_stage:
            self.queries = Proposals(width, num_queries, heads=heads(), focal=focal, **types)
        else:
            self.queries = (LearnedBoxes if has_boxes else LearnedQueries)(width, num_queries, **types)
        self.position = nnx.data(Perceptron(2 * width, width, width, **types) if has_boxes else None)
        self.noised_content = nnx.data(nnx.Embed(num_classes, width, **types) if has_boxes else None)
        layer = partial(DecoderLayer, width, num_heads, modulate=modulate, **types)
        self.decoder = nnx.List([layer() for _ in range(decoder_layers)])
        self.heads = heads()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.refine = refine
        self.width = width

    def __call__(self, x: Float[Array, "*b h w c"], noised: Noised | None = None) -> dict[str, PyTree]:
        """What the queries find.

        Args:
            x: images.
            noised: the labels and boxes of denoising queries, and which of them sees which of them.

        Returns:
            "logits" (l, *b, n, k) and "boxes" (l, *b, n, 4), as (c_x, c_y, w, h) in shares of the image, of each of l
            layers of the decoder; with two stages under "proposals" those of the tokens, (*b, m, k) and (*b, m, 4);
            with denoising queries under "denoised" theirs, (l, *b, d, k) and (l, *b, d, 4).
        """
        memory, position, cells = self._encode(x)
        queries, proposals = self.queries(memory, cells)
        mask = None
        if noised is not None:
            check(queries.boxes is not None, "denoising queries need reference boxes: two_stage, refine or modulate.")
            queries, mask = self._with_noised(queries, *noised)
        layers = self._decode(queries, mask, memory, position, cells)
        n = self.num_queries
        found = {name: values[..., :n, :] for name, values in layers.items()}
        if proposals is not None:
            found["proposals"] = proposals
        if noised is not None:
            found["denoised"] = {name: values[..., n:, :] for name, values in layers.items()}
        return found

    def _encode(self, x):
        """The tokens of all maps, their positions, and where they lie."""
        maps = self.backbone.features(x)[-len(self.reduce) :]
        cells = Cells.of(*(c.shape[-3:-1] for c in maps))
        maps = [norm(reduce(c)) for norm, reduce, c in zip(self.reduce_norms, self.reduce, maps, strict=True)]
        tokens = jnp.concatenate([c.reshape(*c.shape[:-3], -1, self.width) for c in maps], -2)
        position = ops.sincos_coordinates(cells.centres, self.width).astype(tokens.dtype)
        if self.level_position is not None:
            position = position + self.level_position(cells.levels).astype(tokens.dtype)
        for layer in self.encoder:
            tokens = layer(tokens, position, cells)
        return self.memory_norm(tokens), position, cells

    def _decode(self, queries, mask, memory, memory_position, cells):
        """The logits and boxes after each layer."""
        content, boxes, position = queries
        found = []
        for layer in self.decoder:
            if boxes is not None:
                position = self.position(ops.sincos_coordinates(boxes, 2 * self.width).astype(memory.dtype))
            content = layer(content, position, boxes, memory, memory_position, cells.centres, mask)
            found.append(self.heads(content, boxes))
            if self.refine:
                boxes = jax.lax.stop_gradient(found[-1]["boxes"])
        return jax.tree.map(lambda *layers: jnp.stack(layers), *found)

    def _with_noised(self, queries, labels, boxes, sees):
        """The queries and after them those of noised labels and boxes; which query sees which, for all heads."""
        n, d = queries.content.shape[-2], labels.shape[-1]
        content = jnp.concatenate([queries.content, self.noised_content(labels).astype(queries.content.dtype)], -2)
        boxes = jnp.concatenate([queries.boxes, boxes.astype(queries.boxes.dtype)], -2)
        of_queries = jnp.broadcast_to(jnp.arange(n + d) < n, (*sees.shape[:-2], n, n + d))
        of_noised = jnp.concatenate([jnp.ones((*sees.shape[:-1], n), bool), sees], -1)
        return Queries(content, boxes), jnp.concatenate([of_queries, of_noised], -2)[..., None, :, :]


MODELS = MappingProxyType(
    {
        "detr_small": (
            Detr,
            {
                "backbone": partial(SmallResNet, widths=(48, 96)),
                "width": 96,
                "num_heads": 4,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "num_queries": 12,
            },
        ),
        "detr_resnet18": (Detr, {"backbone": partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2))}),
        "detr_resnet50": (Detr, {"backbone": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3))}),
    }
)
