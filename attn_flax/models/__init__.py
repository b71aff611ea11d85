"""Networks that take an attention by argument, and the table of their names."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from flax import nnx

from attn_flax.catalog import CATALOG, create_attention
from attn_flax.checks import UnknownNameError, arguments_of, check, check_arguments
from attn_flax.models import (
    attention_net,
    attention_resnet,
    attention_segmenter,
    cait,
    coatnet,
    conv_vae,
    convit,
    davit,
    deit,
    detr,
    focalnet,
    maxvit,
    nat,
    pvt_v2,
    resnest,
    resnet,
    sagan,
    segmenter,
    sknet,
    small_resnet,
    swin,
    timesformer,
    twins,
    unet,
    van,
    vit,
    vivit,
    volo,
    xcit,
)
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.attention_net import AttentionNet
from attn_flax.models.attention_resnet import AttentionResNet
from attn_flax.models.attention_segmenter import AttentionSegmenter
from attn_flax.models.cait import CaiT
from attn_flax.models.coatnet import CoAtNet
from attn_flax.models.conv_vae import ConvVae
from attn_flax.models.convit import ConViT
from attn_flax.models.davit import DaViT
from attn_flax.models.deit import DistilledVisionTransformer
from attn_flax.models.detr import Detr
from attn_flax.models.focalnet import FocalNet
from attn_flax.models.maxvit import MaxVit
from attn_flax.models.nat import NAT
from attn_flax.models.pretrained import create_pretrained, find_pretrained
from attn_flax.models.pvt_v2 import PyramidVisionTransformerV2
from attn_flax.models.pyramid import FeaturePyramid
from attn_flax.models.resnest import ResNeSt
from attn_flax.models.resnet import ResNet
from attn_flax.models.sagan import Sagan
from attn_flax.models.segmenter import Segmenter
from attn_flax.models.sknet import SKNet
from attn_flax.models.small_resnet import SmallResNet
from attn_flax.models.swin import SwinTransformer
from attn_flax.models.timesformer import TimeSformer
from attn_flax.models.twins import Twins
from attn_flax.models.unet import UNet
from attn_flax.models.van import VAN
from attn_flax.models.vit import VisionTransformer
from attn_flax.models.vivit import ViViT
from attn_flax.models.volo import Volo
from attn_flax.models.xcit import XCiT

__all__ = [
    "NAT",
    "VAN",
    "AttentionFactory",
    "AttentionNet",
    "AttentionResNet",
    "AttentionSegmenter",
    "CaiT",
    "CoAtNet",
    "ConViT",
    "ConvVae",
    "DaViT",
    "Detr",
    "DistilledVisionTransformer",
    "FeaturePyramid",
    "FocalNet",
    "MaxVit",
    "PyramidVisionTransformerV2",
    "ResNeSt",
    "ResNet",
    "SKNet",
    "Sagan",
    "Segmenter",
    "SmallResNet",
    "SwinTransformer",
    "TimeSformer",
    "Twins",
    "UNet",
    "ViViT",
    "VisionTransformer",
    "Volo",
    "XCiT",
    "create_model",
    "find_pretrained",
    "list_models",
    "takes",
]

FAMILIES = (
    attention_net,
    attention_resnet,
    attention_segmenter,
    cait,
    coatnet,
    conv_vae,
    convit,
    davit,
    deit,
    detr,
    focalnet,
    maxvit,
    nat,
    pvt_v2,
    resnest,
    resnet,
    sagan,
    segmenter,
    sknet,
    small_resnet,
    swin,
    timesformer,
    twins,
    unet,
    van,
    vit,
    vivit,
    volo,
    xcit,
)
MODELS = {name: entry for family in FAMILIES for name, entry in family.MODELS.items()}
ACTIVATIONS = {
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jax.nn.tanh,
}


def list_models() -> list[str]:
    """The names that `create_model` knows.

    >>> "resnet50" in list_models()
    True
    """
    return sorted(MODELS)


def takes(name: str, argument: str) -> bool:
    """Whether the network of that name has such an argument.

    >>> takes("resnet50", "attention"), takes("resnet50", "image_size")
    (True, False)

    Raises:
        UnknownNameError: the network does not exist.
    """
    return argument in arguments_of(_entry(name)[0])


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: str | Path | None = None,
    tell: Callable[[str], None] = print,
    rngs: nnx.Rngs,
    **arguments,
) -> nnx.Module:
    """The network of that name.

    One with pretrained numbers has `preprocessing`, how its images are to be prepared, or None where that is not known.

    Args:
        name: one of `list_models()`.
        num_classes: the number of logits; by default 1000, or as many as the pretrained network has. If it has others,
            the head is a new one.
        pretrained: where timm's numbers of a network of that name are: a file of safetensors, a folder of
            model.safetensors and config.json, or an identifier of the Hugging Face hub such as
            "timm/vit_small_patch16_224.augreg_in1k". Positions are resampled for another `image_size`.
        tell: shows a message: that the head is new, or that nothing tells of the images.
        rngs: the source of the initial parameters.
        **arguments: those of the network's class, which documents them; they go before what the name stands for.
            `attention` may also be a name of the catalogue or "none", and `activation` a name: elu, gelu, relu, silu,
            tanh or "none".

    Raises:
        UnknownNameError: the network, its attention, its activation or an argument does not exist; the close ones are
            listed.
        InputError: an argument is out of range, or the pretrained numbers cannot be read or are another network's.

    >>> model = create_model("attention_net", num_classes=10, activation="relu", rngs=nnx.Rngs(0))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    4276690
    """
    model, own = _entry(name)
    check_arguments(name, model, arguments)
    if "attention" in arguments:
        types = {argument: arguments[argument] for argument in ("dtype", "param_dtype") if argument in arguments}
        attentions = {attention: partial(create_attention, attention, **types) for attention in CATALOG}
        arguments["attention"] = _named("attention", arguments["attention"], attentions)
    if "activation" in arguments:
        arguments["activation"] = _named("activation", arguments["activation"], ACTIVATIONS)
    arguments = own | arguments
    if pretrained is None:
        return model(1000 if num_classes is None else num_classes, **arguments, rngs=rngs)
    source = find_pretrained(pretrained)
    check(
        source.architecture in (None, name),
        f"{pretrained} holds the network {source.architecture!r}, got the name {name!r} for it.",
    )
    return create_pretrained(partial(model, **arguments), source, num_classes=num_classes, rngs=rngs, tell=tell)


def _entry(name):
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    return MODELS[name]


def _named(kind, value, table):
    """What a name of the table stands for, None for "none"; what is no name stands for itself."""
    if not isinstance(value, str):
        return value
    table = {"none": None, **table}
    if value not in table:
        raise UnknownNameError(kind, value, table)
    return table[value]
