"""The catalogue: every mechanism's name, and what it stands for.

A row is a class and the arguments that its name fixes. All else is told by the class: its family is the room of
mechanisms/ that it lives in, its equation and its paper are in its file's docstring, its cost in its method `cost`.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from flax import nnx

from attn_flax import nn
from attn_flax.checks import InputError, UnknownNameError, check, check_arguments
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.document import Document, read_document

Kind = Literal["map", "video", "map + signal", "map + state", "pool"]


@dataclass(frozen=True)
class Row:
    """A mechanism of the catalogue.

    Attributes:
        module: the class, constructed as `module(channels, *, rngs, **arguments)`.
        arguments: what the name fixes, so that a variant is a row and not a class.
        kind: what it takes, and gives in the same layout: "map" (*b h w c) or "video" (*b t h w c);
            "map + signal" and "map + state" take a second argument, and "pool" gives another layout.
    """

    module: Callable[..., nnx.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "map"

    @property
    def family(self) -> str:
        """The room of mechanisms/."""
        return self.module.__module__.split(".")[-2]

    @property
    def document(self) -> Document:
        """What its file says about it."""
        return read_document(sys.modules[self.module.__module__].__doc__)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Its arguments beside the channels and the generators, with what they are if nobody says; the fixed ones."""
        parameters = inspect.signature(self.module.__init__).parameters
        given = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
        return {**given, **self.arguments}

    @property
    def required(self) -> set[str]:
        """The arguments that have no default and that the name leaves open, beside the channels and the generators."""
        parameters = inspect.signature(self.module.__init__).parameters
        without_default = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
        return without_default - self.arguments.keys() - {"self", "channels", "rngs"}

    @property
    def drop_in(self) -> bool:
        """Whether `create_attention(name, channels, rngs=rngs)` gives a Module from any map to a map of its shape."""
        return self.kind == "map" and not self.required


CATALOG: Mapping[str, Row] = MappingProxyType(
    {
        "article": Row(nn.Article),
        "article_gate": Row(nn.ArticleGate),
        "ceca": Row(nn.EfficientChannel, {"circular": True}),
        "channel_attn_davit": Row(nn.ChannelGroupAttention),
        "dia": Row(nn.Dia, kind="map + state"),
        "eca": Row(nn.EfficientChannel),
        "ecam": Row(nn.EfficientChannel, {"use_mlp": True}),
        "enc": Row(nn.Enc),
        "ese": Row(nn.EffectiveSqueezeExcite),
        "fca": Row(nn.Fca),
        "gct": Row(nn.GatedChannelTransform),
        "ge": Row(nn.GatherExcite),
        "grn": Row(nn.GlobalResponseNorm),
        "gsop": Row(nn.Gsop),
        "rca": Row(nn.ResidualChannelAttention),
        "se": Row(nn.SqueezeExcite),
        "soca": Row(nn.Soca),
        "srm": Row(nn.StyleRecalibration),
        "aa_conv": Row(nn.AttentionAugmentedConv),
        "attention_gate": Row(nn.AttentionGate, kind="map + signal"),
        "axial": Row(nn.AxialAttention),
        "bat": Row(nn.BilinearAttentionTransform),
        "criss_cross": Row(nn.CrissCrossAttention),
        "deformable": Row(nn.DeformableAttention),
        "double_attention": Row(nn.DoubleAttention),
        "emanet": Row(nn.ExpectationMaximizationAttention),
        "external_attention": Row(nn.ExternalAttention),
        "focal_modulation": Row(nn.FocalModulation),
        "gc": Row(nn.GlobalContext, {"fuse_add": False, "fuse_scale": True}),
        "gca": Row(nn.GlobalContext, {"fuse_add": True, "fuse_scale": False}),
        "gcnet": Row(nn.GlobalContext),
        "global_filter": Row(nn.GlobalFilter),
        "gnconv": Row(nn.RecursiveGatedConv),
        "hamburger": Row(nn.Hamburger),
        "involution": Row(nn.Involution),
        "lka": Row(nn.LargeKernelAttention),
        "nl": Row(nn.NonLocal, {"scale": "channels"}),
        "non_local": Row(nn.NonLocal),
        "poolformer": Row(nn.Pooling),
        "sagan": Row(nn.SaganAttention),
        "self_attention_2d": Row(nn.SelfAttention2D),
        "sgu": Row(nn.SpatialGatingUnit, kind="pool"),
        "stn": Row(nn.SpatialTransformer),
        "tokenlearner": Row(nn.TokenLearner, kind="pool"),
        "tokenlearner_v11": Row(nn.TokenLearner, {"version": "1.1"}, kind="pool"),
        "bam": Row(nn.Bam),
        "cbam": Row(nn.Cbam),
        "coord": Row(nn.CoordinateAttention),
        "danet": Row(nn.DualAttention),
        "ela": Row(nn.EfficientLocalAttention),
        "lcbam": Row(nn.Cbam, {"light": True}),
        "mixed_pooling": Row(nn.MixedPooling),
        "polarized": Row(nn.PolarizedSelfAttention),
        "psa_pyramid": Row(nn.PyramidSplitAttention),
        "residual_attention_net": Row(nn.ResidualAttention),
        "scconv": Row(nn.SelfCalibratedConv),
        "scoord": Row(nn.SimpleCoordinateAttention),
        "scse": Row(nn.ScSE),
        "sge": Row(nn.SpatialGroupEnhance),
        "shuffle_attention": Row(nn.ShuffleAttention),
        "simam": Row(nn.SimAM),
        "simple_coord": Row(nn.SimpleCoordinateAttention),
        "strip": Row(nn.StripAttention),
        "strip_pooling": Row(nn.StripPooling),
        "triplet": Row(nn.TripletAttention),
        "acmix": Row(nn.ACmix),
        "condconv": Row(nn.CondConv),
        "dynamic_conv": Row(nn.DynamicConv),
        "highway": Row(nn.Highway),
        "sk": Row(nn.SelectiveKernel),
        "splat": Row(nn.SplitAttention, {"use_norm": False}),
        "split_attention": Row(nn.SplitAttention),
        "additive": Row(nn.EfficientAdditiveAttention),
        "aft": Row(nn.AttentionFreeTransformer),
        "aft_conv": Row(nn.AttentionFreeTransformer, {"form": "conv", "size": None}),
        "aft_local": Row(nn.AttentionFreeTransformer, {"form": "local"}),
        "aft_simple": Row(nn.AttentionFreeTransformer, {"form": "simple", "size": None}),
        "attention_pool": Row(nn.AttentionPool, kind="pool"),
        "block_attention": Row(nn.PartitionAttention, {"partition": "window"}),
        "bottleneck": Row(nn.BottleneckAttention),
        "cascaded_group": Row(nn.CascadedGroupAttention),
        "class_attention": Row(nn.ClassAttention, kind="pool"),
        "coatnet_rel": Row(nn.RelativeSelfAttention),
        "cosformer_performer": Row(nn.Performer),
        "cvt": Row(nn.ConvolutionalAttention),
        "dat": Row(nn.SharedDeformableAttention),
        "deepvit_reattention": Row(nn.ReAttention),
        "diff_attention": Row(nn.DifferentialAttention),
        "dilated_neighborhood": Row(nn.NeighborhoodAttention, {"dilation": 2}),
        "eva_rope": Row(nn.RotarySelfAttention),
        "gpsa": Row(nn.GatedPositionalSelfAttention),
        "grid_attention": Row(nn.PartitionAttention),
        "halo": Row(nn.HaloAttention),
        "lambda": Row(nn.LambdaLayer),
        "linear_attention": Row(nn.LinearAttention),
        "linear_sra": Row(nn.SpatialReductionAttention, {"sr_ratio": 1, "pool": 7}),
        "lsa": Row(nn.LocallyGroupedAttention),
        "lsa_gsa": Row(nn.SpatiallySeparableAttention),
        "mhsa": Row(nn.MultiHeadSelfAttention),
        "neighborhood": Row(nn.NeighborhoodAttention),
        "outlook": Row(nn.OutlookAttention),
        "relu_linear": Row(nn.ReluLinearAttention),
        "separable_mobilevit": Row(nn.SeparableSelfAttention),
        "single_head": Row(nn.SingleHeadAttention),
        "sra": Row(nn.SpatialReductionAttention),
        "swin": Row(nn.ShiftedWindowAttention),
        "swinv2": Row(nn.CosineWindowAttention),
        "talking_heads": Row(nn.TalkingHeadsAttention),
        "xca": Row(nn.CrossCovarianceAttention),
        "gltr": Row(nn.GlobalLocalTemporal, kind="pool"),
        "tam": Row(nn.TemporalAdaptive, kind="video"),
        "temporal_mhsa": Row(nn.TemporalSelfAttention, kind="video"),
        "divided_st": Row(nn.DividedSpaceTime, kind="video"),
        "dstt": Row(nn.DecoupledSpatialTemporal, kind="video"),
        "factorised_dot": Row(nn.FactorisedDotProduct, kind="video"),
    }
)


def list_attentions(family: str | None = None, *, drop_in: bool | None = None) -> list[str]:
    """The names of the catalogue.

    Args:
        family: only those of this room: article, channel, spatial, channel_spatial, branch,
            self_attention, temporal, spatial_temporal.
        drop_in: only those that `create_attention(name, channels, rngs=rngs)` makes fit for any map, or only the
            others.

    Raises:
        UnknownNameError: no mechanism is of that family; the close ones are listed.

    >>> list_attentions("article", drop_in=True)
    ['article', 'article_gate']
    """
    families = {row.family for row in CATALOG.values()}
    if family is not None and family not in families:
        raise UnknownNameError("family", family, families)
    return sorted(
        name for name, row in CATALOG.items() if family in (None, row.family) and drop_in in (None, row.drop_in)
    )


def create_attention(name: str, channels: int, *, rngs: nnx.Rngs, **hyperparameters) -> nnx.Module:
    """The mechanism of that name for features of `channels` channels.

    Args:
        name: one of `list_attentions()`.
        channels: the size of the last axis of its input.
        rngs: the source of its initial parameters.
        **hyperparameters: the arguments of the mechanism's class, which also documents and checks them.

    Raises:
        UnknownNameError: the name or a hyperparameter does not exist; the close ones are listed.
        InputError: a hyperparameter is out of range, missing, or fixed by the name.

    >>> gate = create_attention("article_gate", 64, reduction=4, rngs=nnx.Rngs(0))
    >>> gate.reduce.out_features
    16
    """
    row = _row(name)
    check_arguments(name, row.module, hyperparameters)
    for argument in row.arguments.keys() & hyperparameters.keys():
        raise InputError(f"{argument} of attention {name!r} is fixed to {row.arguments[argument]!r}.")
    missing = row.required - hyperparameters.keys()
    check(not missing, f"attention {name!r} needs {', '.join(sorted(missing))}, got none.")
    return row.module(channels, **row.arguments, **hyperparameters, rngs=rngs)


@dataclass(frozen=True)
class Description:
    """What a name of the catalogue stands for.

    Attributes:
        name: it.
        family: the room of mechanisms/.
        kind: what it takes, as `Row` says.
        drop_in: whether it fits any map, given the channels alone.
        document: title, equation, description, deviations, known errors of others, source.
        defaults: its arguments, and what they are if nobody says.
        cost: parameters and multiply-adds, if a shape was given.
    """

    name: str
    family: str
    kind: Kind
    drop_in: bool
    document: Document
    defaults: Mapping[str, Any]
    cost: Cost | None


def describe_attention(name: str, shape: tuple[int, ...] | None = None, **hyperparameters) -> Description:
    """What that name stands for, and what it costs by its formulas: nothing is computed, no parameter allocated.

    Args:
        name: one of `list_attentions()`.
        shape: of one example of its (first) input, channels last, to know the cost.
        **hyperparameters: the arguments of the mechanism's class, to know the cost.

    Raises:
        UnknownNameError: the name or a hyperparameter does not exist; the close ones are listed.
        InputError: a hyperparameter is out of range, missing, or fixed by the name, or given without a shape.

    >>> described = describe_attention("article_gate", (28, 28, 64))
    >>> described.family, described.cost
    ('article', Cost(parameters=1096, multiply_adds=802816))
    >>> print(described.document.equation)
    m = relu(W_2 sigmoid(W_1 x + b_1) + b_2)
    y = x · m
    """
    row = _row(name)
    check(shape is not None or not hyperparameters, "a shape is needed with hyperparameters, got None.")
    cost = None
    if shape is not None:
        module = nnx.eval_shape(lambda: create_attention(name, shape[-1], rngs=nnx.Rngs(0), **hyperparameters))
        cost = module.cost(tuple(shape))
    return Description(name, row.family, row.kind, row.drop_in, row.document, row.defaults, cost)


def _row(name):
    if name not in CATALOG:
        raise UnknownNameError("attention", name, CATALOG)
    return CATALOG[name]
