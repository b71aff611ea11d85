"""Every mechanism's Module: `from attn_flax import nn`."""

from attn_flax.mechanisms.article.article import Article
from attn_flax.mechanisms.article.gate import ArticleGate
from attn_flax.mechanisms.branch.acmix import ACmix
from attn_flax.mechanisms.branch.condconv import CondConv
from attn_flax.mechanisms.branch.dynamic_conv import DynamicConv
from attn_flax.mechanisms.branch.highway import Highway
from attn_flax.mechanisms.branch.sk import SelectiveKernel
from attn_flax.mechanisms.branch.split_attention import SplitAttention
from attn_flax.mechanisms.channel.channel_attn_davit import ChannelGroupAttention
from attn_flax.mechanisms.channel.dia import Dia
from attn_flax.mechanisms.channel.eca import EfficientChannel
from attn_flax.mechanisms.channel.enc import Enc
from attn_flax.mechanisms.channel.ese import EffectiveSqueezeExcite
from attn_flax.mechanisms.channel.fca import Fca
from attn_flax.mechanisms.channel.gct import GatedChannelTransform
from attn_flax.mechanisms.channel.ge import GatherExcite
from attn_flax.mechanisms.channel.grn import GlobalResponseNorm
from attn_flax.mechanisms.channel.gsop import Gsop
from attn_flax.mechanisms.channel.rca import ResidualChannelAttention
from attn_flax.mechanisms.channel.se import SqueezeExcite
from attn_flax.mechanisms.channel.soca import Soca
from attn_flax.mechanisms.channel.srm import StyleRecalibration
from attn_flax.mechanisms.channel_spatial.bam import Bam
from attn_flax.mechanisms.channel_spatial.cbam import Cbam
from attn_flax.mechanisms.channel_spatial.coord import CoordinateAttention
from attn_flax.mechanisms.channel_spatial.danet import DualAttention
from attn_flax.mechanisms.channel_spatial.ela import EfficientLocalAttention
from attn_flax.mechanisms.channel_spatial.polarized import PolarizedSelfAttention
from attn_flax.mechanisms.channel_spatial.psa_pyramid import PyramidSplitAttention
from attn_flax.mechanisms.channel_spatial.residual_attention_net import ResidualAttention
from attn_flax.mechanisms.channel_spatial.scconv import SelfCalibratedConv
from attn_flax.mechanisms.channel_spatial.scse import ScSE
from attn_flax.mechanisms.channel_spatial.sge import SpatialGroupEnhance
from attn_flax.mechanisms.channel_spatial.shuffle_attention import ShuffleAttention
from attn_flax.mechanisms.channel_spatial.simam import SimAM
from attn_flax.mechanisms.channel_spatial.simple_coord import SimpleCoordinateAttention
from attn_flax.mechanisms.channel_spatial.strip import StripAttention
from attn_flax.mechanisms.channel_spatial.strip_pooling import MixedPooling, StripPooling
from attn_flax.mechanisms.channel_spatial.triplet import TripletAttention
from attn_flax.mechanisms.self_attention.additive import EfficientAdditiveAttention
from attn_flax.mechanisms.self_attention.aft import AttentionFreeTransformer
from attn_flax.mechanisms.self_attention.attention_pool import AttentionPool
from attn_flax.mechanisms.self_attention.bottleneck import BottleneckAttention
from attn_flax.mechanisms.self_attention.cascaded_group import CascadedGroupAttention
from attn_flax.mechanisms.self_attention.class_attention import ClassAttention
from attn_flax.mechanisms.self_attention.coatnet_rel import RelativeSelfAttention
from attn_flax.mechanisms.self_attention.cvt import ConvolutionalAttention
from attn_flax.mechanisms.self_attention.dat import SharedDeformableAttention
from attn_flax.mechanisms.self_attention.deepvit_reattention import ReAttention
from attn_flax.mechanisms.self_attention.diff_attention import DifferentialAttention
from attn_flax.mechanisms.self_attention.eva_rope import RotarySelfAttention
from attn_flax.mechanisms.self_attention.gpsa import GatedPositionalSelfAttention
from attn_flax.mechanisms.self_attention.grid_attention import PartitionAttention
from attn_flax.mechanisms.self_attention.halo import HaloAttention
from attn_flax.mechanisms.self_attention.lambda_layer import LambdaLayer
from attn_flax.mechanisms.self_attention.linear_attention import LinearAttention
from attn_flax.mechanisms.self_attention.lsa_gsa import LocallyGroupedAttention, SpatiallySeparableAttention
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from attn_flax.mechanisms.self_attention.neighborhood import NeighborhoodAttention
from attn_flax.mechanisms.self_attention.outlook import OutlookAttention
from attn_flax.mechanisms.self_attention.performer import Performer
from attn_flax.mechanisms.self_attention.relu_linear import ReluLinearAttention
from attn_flax.mechanisms.self_attention.separable_mobilevit import SeparableSelfAttention
from attn_flax.mechanisms.self_attention.single_head import SingleHeadAttention
from attn_flax.mechanisms.self_attention.sra import SpatialReductionAttention
from attn_flax.mechanisms.self_attention.swin import ShiftedWindowAttention
from attn_flax.mechanisms.self_attention.swinv2 import CosineWindowAttention
from attn_flax.mechanisms.self_attention.talking_heads import TalkingHeadsAttention
from attn_flax.mechanisms.self_attention.xca import CrossCovarianceAttention
from attn_flax.mechanisms.spatial.aa_conv import AttentionAugmentedConv
from attn_flax.mechanisms.spatial.attention_gate import AttentionGate
from attn_flax.mechanisms.spatial.axial import AxialAttention
from attn_flax.mechanisms.spatial.bat import BilinearAttentionTransform
from attn_flax.mechanisms.spatial.criss_cross import CrissCrossAttention
from attn_flax.mechanisms.spatial.deformable import DeformableAttention, MultiScaleDeformableAttention
from attn_flax.mechanisms.spatial.double_attention import DoubleAttention
from attn_flax.mechanisms.spatial.emanet import ExpectationMaximizationAttention
from attn_flax.mechanisms.spatial.external_attention import ExternalAttention
from attn_flax.mechanisms.spatial.focal_modulation import FocalModulation
from attn_flax.mechanisms.spatial.gcnet import GlobalContext
from attn_flax.mechanisms.spatial.global_filter import GlobalFilter
from attn_flax.mechanisms.spatial.gnconv import RecursiveGatedConv
from attn_flax.mechanisms.spatial.hamburger import Hamburger
from attn_flax.mechanisms.spatial.involution import Involution
from attn_flax.mechanisms.spatial.lka import LargeKernelAttention
from attn_flax.mechanisms.spatial.non_local import NonLocal
from attn_flax.mechanisms.spatial.poolformer import Pooling
from attn_flax.mechanisms.spatial.sagan import SaganAttention
from attn_flax.mechanisms.spatial.self_attention_2d import SelfAttention2D
from attn_flax.mechanisms.spatial.sgu import SpatialGatingUnit
from attn_flax.mechanisms.spatial.stn import SpatialTransformer
from attn_flax.mechanisms.spatial.tokenlearner import TokenLearner
from attn_flax.mechanisms.spatial_temporal.divided_st import DividedSpaceTime
from attn_flax.mechanisms.spatial_temporal.dstt import DecoupledSpatialTemporal
from attn_flax.mechanisms.spatial_temporal.factorised_dot import FactorisedDotProduct
from attn_flax.mechanisms.temporal.gltr import GlobalLocalTemporal
from attn_flax.mechanisms.temporal.tam import TemporalAdaptive
from attn_flax.mechanisms.temporal.temporal_mhsa import TemporalSelfAttention

__all__ = [
    "ACmix",
    "Article",
    "ArticleGate",
    "AttentionAugmentedConv",
    "AttentionFreeTransformer",
    "AttentionGate",
    "AttentionPool",
    "AxialAttention",
    "Bam",
    "BilinearAttentionTransform",
    "BottleneckAttention",
    "CascadedGroupAttention",
    "Cbam",
    "ChannelGroupAttention",
    "ClassAttention",
    "CondConv",
    "ConvolutionalAttention",
    "CoordinateAttention",
    "CosineWindowAttention",
    "CrissCrossAttention",
    "CrossCovarianceAttention",
    "DecoupledSpatialTemporal",
    "DeformableAttention",
    "Dia",
    "DifferentialAttention",
    "DividedSpaceTime",
    "DoubleAttention",
    "DualAttention",
    "DynamicConv",
    "EffectiveSqueezeExcite",
    "EfficientAdditiveAttention",
    "EfficientChannel",
    "EfficientLocalAttention",
    "Enc",
    "ExpectationMaximizationAttention",
    "ExternalAttention",
    "FactorisedDotProduct",
    "Fca",
    "FocalModulation",
    "GatedChannelTransform",
    "GatedPositionalSelfAttention",
    "GatherExcite",
    "GlobalContext",
    "GlobalFilter",
    "GlobalLocalTemporal",
    "GlobalResponseNorm",
    "Gsop",
    "HaloAttention",
    "Hamburger",
    "Highway",
    "Involution",
    "LambdaLayer",
    "LargeKernelAttention",
    "LinearAttention",
    "LocallyGroupedAttention",
    "MixedPooling",
    "MultiHeadSelfAttention",
    "MultiScaleDeformableAttention",
    "NeighborhoodAttention",
    "NonLocal",
    "OutlookAttention",
    "PartitionAttention",
    "Performer",
    "PolarizedSelfAttention",
    "Pooling",
    "PyramidSplitAttention",
    "ReAttention",
    "RecursiveGatedConv",
    "RelativeSelfAttention",
    "ReluLinearAttention",
    "ResidualAttention",
    "ResidualChannelAttention",
    "RotarySelfAttention",
    "SaganAttention",
    "ScSE",
    "SelectiveKernel",
    "SelfAttention2D",
    "SelfCalibratedConv",
    "SeparableSelfAttention",
    "SharedDeformableAttention",
    "ShiftedWindowAttention",
    "ShuffleAttention",
    "SimAM",
    "SimpleCoordinateAttention",
    "SingleHeadAttention",
    "Soca",
    "SpatialGatingUnit",
    "SpatialGroupEnhance",
    "SpatialReductionAttention",
    "SpatialTransformer",
    "SpatiallySeparableAttention",
    "SplitAttention",
    "SqueezeExcite",
    "StripAttention",
    "StripPooling",
    "StyleRecalibration",
    "TalkingHeadsAttention",
    "TemporalAdaptive",
    "TemporalSelfAttention",
    "TokenLearner",
    "TripletAttention",
]
