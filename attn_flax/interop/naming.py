r"""What timm calls our Modules' layers: a table of mechanisms here, of networks what their classes hold.

A network's class holds `timm_names`, pairs of a pattern and of what timm has in its place. They are substituted one
after another in the paths of its parameters, after those of the Modules within it. Where timm cuts what is one array
here, or joins what are several, along its first axis, the name says so:

    (r"\bqkv\b", "{qk,qk,v}")        our qkv is of three equal parts; the first two are timm's qk, the third is its v
    (r"\bk\b", "kv[0]"), (r"\bv\b", "kv[1]")      our k and v are timm's kv, in this order

It may hold `timm_convs`, a pattern of timm's names of layers that are convolutions of 1×1 there and `nnx.Linear` here,
and `timm_arrays`, by patterns of our names the layouts of arrays that no kind of layer tells.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from flax import nnx

from attn_flax import nn
from attn_flax.interop.layouts import CONV_1X1, LINEAR, Layout
from attn_flax.mechanisms.layers import Perceptron

EVERY = ""
"""The pattern that is in all names."""

TOKEN = Layout(ones=(0, 1))
EMBEDDINGS: Mapping[str, Layout] = MappingProxyType({r"^(cls|dist)_token$": TOKEN, r"^pos_embed$": Layout(ones=(0,))})
"""What networks own themselves; timm gives it an axis of images."""


@dataclasses.dataclass(frozen=True)
class Naming:
    """How timm names and lays out what is in a Module.

    Attributes:
        names: pairs of a pattern and of what timm has in its place.
        convs: a pattern of timm's names of 1×1 convolutions that are nnx.Linear here; None for none.
        arrays: by patterns of our names, layouts that are not those of PyTorch's layer of the same kind.
    """

    names: tuple[tuple[str, str], ...] = ()
    convs: str | None = None
    arrays: Mapping[str, Layout] = dataclasses.field(default_factory=dict)

    def name(self, path: str) -> str:
        """timm's, of what has this path."""
        for pattern, theirs in self.names:
            path = re.sub(pattern, theirs, path)
        return path

    def layout(self, path: str, name: str, layout: Layout) -> Layout:
        """timm's, of what has this path, and this name and layout otherwise."""
        for pattern, of_array in self.arrays.items():
            if re.search(pattern, path):
                return of_array
        is_conv = layout == LINEAR and self.convs is not None and re.search(self.convs, name)
        return CONV_1X1 if is_conv else layout


def naming(module: nnx.Module) -> Naming | None:
    """That of the Module's class, or of the nearest class that it is derived from; None where timm has none."""
    for kind in type(module).__mro__:
        if kind in MECHANISMS:
            of_kind = MECHANISMS[kind]
            return of_kind(module) if callable(of_kind) else of_kind
        if "timm_names" in vars(kind):
            own = getattr(module, "timm_arrays", {})
            return Naming(module.timm_names, getattr(module, "timm_convs", None), {**own, **EMBEDDINGS, **own})
    return None


def _eca(module):
    layer = "conv" if module.lift is None else "conv2"
    return Naming(
        names=((r"^kernel", f"{layer}.kernel"), (r"^bias", f"{layer}.bias"), (r"^lift", "conv")),
        arrays={
            r"^kernel": Layout((1, 0), (0,)),
            r"^bias": Layout(ones=(0,)),
            r"^lift\.kernel": Layout((1, 0), (2,)),
        },
    )


SAME = Naming()
IN_GROUPS = Layout((0, 2, 1), (2, 3), merged=True)
OF_GROUPS = Layout(merged=True)
OF_HEADS = Layout(ones=(1, 2))
RELATIVE = Naming(names=((r"^relative", "rel_pos.relative"),))
POSITIONS = (r"^rows", "pos_embed.height_rel"), (r"^columns", "pos_embed.width_rel")

MECHANISMS: Mapping[type[nnx.Module], Naming | Callable[[nnx.Module], Naming]] = MappingProxyType(
    {
        Perceptron: Naming(names=((r"^reduce", "fc1"), (r"^expand", "fc2"))),
        nn.AttentionPool: Naming(arrays={r"^latent": TOKEN}),
        nn.BilinearAttentionTransform: Naming(
            names=(
                (r"^reduce", "conv1"),
                (r"^summarize", "ba.conv1"),
                (r"^row", "ba.conv_p"),
                (r"^column", "ba.conv_q"),
                (r"^mix", "ba.conv2"),
                (r"^expand", "conv2"),
                (r"\.norm\b", ".bn"),
            ),
            convs=r"conv$",
        ),
        nn.BottleneckAttention: Naming(names=POSITIONS, convs=EVERY),
        nn.CascadedGroupAttention: Naming(
            names=(
                (r"^biases", "attn.attention_biases"),
                (r"^heads\.(\d+)\.qkv", r"attn.qkvs.\1"),
                (r"^heads\.(\d+)\.(conv|norm)", r"attn.dws.\1.\2"),
                (r"^proj", "attn.proj.1"),
                (r"\blinear\b", "conv"),
                (r"\bnorm\b", "bn"),
            ),
            convs=EVERY,
        ),
        nn.Cbam: Naming(
            names=(
                (r"^excite", "channel"),
                (r"^convolve", "spatial.conv.conv"),
                (r"^norm", "spatial.conv.bn"),
            ),
            convs=r"^channel",
        ),
        nn.ChannelGroupAttention: Naming(
            # softmax(key value) is applied to the queries here, to the values there: what they call what differs
            names=((r"^value", "qkv[0]"), (r"^query", "qkv[1]"), (r"^key", "qkv[2]"), (r"^project", "proj"))
        ),
        nn.ClassAttention: SAME,
        nn.CoordinateAttention: Naming(
            names=((r"^reduce", "conv1"), (r"^norm", "bn1"), (r"^expand", "conv")), convs=r"^conv"
        ),
        nn.CosineWindowAttention: Naming(names=((r"\blayers\.", ""),), arrays={r"^logit_scale": OF_HEADS}),
        nn.CrossCovarianceAttention: Naming(arrays={r"^temperature": OF_HEADS}),
        nn.DifferentialAttention: Naming(names=((r"^norm", "sub_norm"),)),
        nn.EfficientAdditiveAttention: Naming(arrays={r"^w_g": Layout(ones=(1,))}),
        nn.EfficientChannel: _eca,
        nn.EfficientLocalAttention: SAME,
        nn.EffectiveSqueezeExcite: Naming(names=((r"^excite", "fc"),), convs=EVERY),
        nn.FocalModulation: Naming(
            names=(
                (r"^read", "f"),
                (r"^mix", "h"),
                (r"^project", "proj"),
                (r"^focus\.(\d+)", r"focal_layers.\1.0"),
            ),
            convs=EVERY,
        ),
        nn.GatedPositionalSelfAttention: Naming(names=((r"^gate", "gating_param"),)),
        nn.GatherExcite: Naming(names=((r"^excite", "mlp"),), convs=EVERY),
        nn.GlobalContext: Naming(
            names=(
                (r"^score", "conv_attn"),
                (r"^(add|scale)\.", r"mlp_\1."),
                (r"\breduce\b", "fc1"),
                (r"\bexpand\b", "fc2"),
            ),
            convs=EVERY,
        ),
        nn.HaloAttention: Naming(names=POSITIONS, convs=EVERY),
        nn.LambdaLayer: Naming(
            names=((r"^convolve", "conv_lambda"), (r"^table", "pos_emb")),
            convs=EVERY,
            arrays={r"^convolve\.kernel": Layout((3, 2, 0, 1), (4,))},
        ),
        nn.LocallyGroupedAttention: SAME,
        nn.MultiHeadSelfAttention: SAME,
        nn.NonLocal: Naming(
            names=((r"^query", "t"), (r"^key", "p"), (r"^value", "g"), (r"^project", "z")),
            convs=EVERY,
        ),
        nn.OutlookAttention: SAME,
        nn.PartitionAttention: RELATIVE,
        nn.RelativeSelfAttention: RELATIVE,
        nn.ReluLinearAttention: Naming(
            names=((r"^(qkv|proj)", r"\1.conv"), (r"^norm", "proj.norm"), (r"\blayers\.", "")),
            convs=EVERY,
        ),
        nn.RotarySelfAttention: SAME,
        nn.SelectiveKernel: Naming(
            names=(
                (r"^reduce", "attn.fc_reduce"),
                (r"^norm\b", "attn.bn"),
                (r"^expand", "attn.fc_select"),
                (r"^convs\.(\d+)", r"paths.\1.conv"),
                (r"^norms\.(\d+)", r"paths.\1.bn"),
            ),
            convs=r"^attn",
        ),
        nn.SeparableSelfAttention: Naming(convs=EVERY),
        nn.ShiftedWindowAttention: SAME,
        nn.SimpleCoordinateAttention: Naming(names=((r"^reduce", "fc1"), (r"^expand", "fc"))),
        nn.SingleHeadAttention: Naming(
            names=(
                (r"^norm", "pre_norm"),
                (r"^proj", "proj.1"),
                (r"\blinear\b", "c"),
                (r"\.norm\b", ".bn"),
            ),
            convs=EVERY,
        ),
        nn.SpatialReductionAttention: SAME,
        nn.SplitAttention: Naming(
            names=((r"^conv_norm", "bn0"), (r"^norm", "bn1"), (r"^reduce", "fc1"), (r"^expand", "fc2")),
            arrays={r"^(reduce|expand)\.kernel": IN_GROUPS, r"^(reduce|expand)\.bias": OF_GROUPS},
        ),
        nn.SqueezeExcite: Naming(names=((r"^excite\.", ""),), convs=EVERY),
        nn.StripAttention: SAME,
        nn.TalkingHeadsAttention: Naming(names=((r"^mix_scores", "proj_l"), (r"^mix_weights", "proj_w"))),
    }
)
"""Of timm 1.0.31, whose mechanisms these are."""
