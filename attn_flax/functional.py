"""Every mechanism's equations as pure functions: `from attn_flax import functional as F`."""

from attn_flax.mechanisms.article.article import article_attention, article_sum_attention, article_weights
from attn_flax.mechanisms.article.gate import article_gate, article_gate_weights
from attn_flax.mechanisms.branch.acmix import acmix_attention, acmix_attention_weights, acmix_convolution, shifts
from attn_flax.mechanisms.branch.condconv import check_experts, condconv, condconv_weights, cost_of_experts
from attn_flax.mechanisms.branch.dynamic_conv import dynamic_conv, dynamic_conv_weights
from attn_flax.mechanisms.branch.highway import highway, highway_weights
from attn_flax.mechanisms.branch.sk import sk, sk_weights
from attn_flax.mechanisms.branch.split_attention import split_attention, split_attention_weights
from attn_flax.mechanisms.channel.channel_attn_davit import channel_group_attention, channel_group_attention_weights
from attn_flax.mechanisms.channel.dia import dia, dia_state
from attn_flax.mechanisms.channel.eca import eca, eca_weights, nearest_odd
from attn_flax.mechanisms.channel.enc import enc, enc_assignment, enc_codes, enc_weights
from attn_flax.mechanisms.channel.ese import ese, ese_weights
from attn_flax.mechanisms.channel.fca import cosine_basis, fca, fca_weights
from attn_flax.mechanisms.channel.gct import gct, gct_weights
from attn_flax.mechanisms.channel.ge import gather_averages, ge, ge_weights
from attn_flax.mechanisms.channel.grn import grn, grn_weights
from attn_flax.mechanisms.channel.gsop import gsop, gsop_weights
from attn_flax.mechanisms.channel.rca import rca, rca_weights
from attn_flax.mechanisms.channel.se import se, se_weights
from attn_flax.mechanisms.channel.soca import matrix_sqrt, soca, soca_weights
from attn_flax.mechanisms.channel.srm import srm, srm_weights
from attn_flax.mechanisms.channel_spatial.bam import bam, bam_weights
from attn_flax.mechanisms.channel_spatial.cbam import cbam, cbam_channel_weights, cbam_spatial_weights
from attn_flax.mechanisms.channel_spatial.coord import coord, coord_weights
from attn_flax.mechanisms.channel_spatial.danet import danet_channel, danet_channel_weights
from attn_flax.mechanisms.channel_spatial.ela import ela, ela_weights
from attn_flax.mechanisms.channel_spatial.polarized import (
    polarized,
    polarized_channel_weights,
    polarized_spatial_weights,
    softmax_of_query,
    softmax_of_scores,
    softmax_of_values,
)
from attn_flax.mechanisms.channel_spatial.psa_pyramid import psa_pyramid, psa_pyramid_weights
from attn_flax.mechanisms.channel_spatial.residual_attention_net import (
    hourglass,
    residual_attention_net,
    residual_attention_net_weights,
)
from attn_flax.mechanisms.channel_spatial.scconv import block_average, scconv, scconv_weights
from attn_flax.mechanisms.channel_spatial.scse import scse, scse_spatial_weights
from attn_flax.mechanisms.channel_spatial.sge import sge, sge_weights
from attn_flax.mechanisms.channel_spatial.shuffle_attention import shuffle_attention, shuffle_attention_weights
from attn_flax.mechanisms.channel_spatial.simam import simam, simam_weights
from attn_flax.mechanisms.channel_spatial.simple_coord import simple_coord, simple_coord_weights
from attn_flax.mechanisms.channel_spatial.strip import strip, strip_weights
from attn_flax.mechanisms.channel_spatial.strip_pooling import (
    mixed_pooling,
    mixed_pooling_context,
    pyramid_context,
    strip_context,
    strip_pooling,
    strip_pooling_weights,
)
from attn_flax.mechanisms.channel_spatial.triplet import triplet, triplet_weights, z_pool
from attn_flax.mechanisms.self_attention.additive import additive_attention, additive_attention_weights
from attn_flax.mechanisms.self_attention.aft import aft, aft_biased_sum, aft_convolved_sum, aft_sum, aft_weights
from attn_flax.mechanisms.self_attention.attention_pool import attention_pool, attention_pool_weights
from attn_flax.mechanisms.self_attention.bottleneck import bottleneck, bottleneck_weights
from attn_flax.mechanisms.self_attention.cascaded_group import cascaded_group, cascaded_group_weights, distance_bias
from attn_flax.mechanisms.self_attention.class_attention import class_attention, class_attention_weights
from attn_flax.mechanisms.self_attention.coatnet_rel import coatnet_rel, coatnet_rel_weights
from attn_flax.mechanisms.self_attention.cvt import cvt, cvt_weights
from attn_flax.mechanisms.self_attention.dat import dat, dat_bias, dat_positions, dat_sample, dat_weights
from attn_flax.mechanisms.self_attention.deepvit_reattention import deepvit_reattention, deepvit_reattention_weights
from attn_flax.mechanisms.self_attention.diff_attention import diff_attention, diff_attention_weights
from attn_flax.mechanisms.self_attention.eva_rope import eva_rope, eva_rope_weights
from attn_flax.mechanisms.self_attention.gpsa import gpsa, gpsa_weights, position_weights
from attn_flax.mechanisms.self_attention.grid_attention import grid_attention, grid_attention_weights
from attn_flax.mechanisms.self_attention.halo import halo, halo_weights
from attn_flax.mechanisms.self_attention.lambda_layer import (
    lambda_layer,
    lambda_layer_weights,
    local_lambdas,
    relative_lambdas,
)
from attn_flax.mechanisms.self_attention.linear_attention import (
    linear_self_attention,
    linear_self_attention_weights,
    similarity_weights,
)
from attn_flax.mechanisms.self_attention.lsa_gsa import lsa, lsa_weights
from attn_flax.mechanisms.self_attention.mhsa import mhsa, mhsa_weights
from attn_flax.mechanisms.self_attention.neighborhood import neighborhood, neighborhood_weights
from attn_flax.mechanisms.self_attention.outlook import outlook, outlook_weights
from attn_flax.mechanisms.self_attention.performer import (
    orthogonal_features,
    performer,
    performer_features,
    performer_weights,
    positive_features_log,
)
from attn_flax.mechanisms.self_attention.relu_linear import relu_linear_attention, relu_linear_weights
from attn_flax.mechanisms.self_attention.separable_mobilevit import separable_attention, separable_attention_weights
from attn_flax.mechanisms.self_attention.single_head import single_head, single_head_weights
from attn_flax.mechanisms.self_attention.sra import sra, sra_weights
from attn_flax.mechanisms.self_attention.swin import swin, swin_weights
from attn_flax.mechanisms.self_attention.swinv2 import continuous_position_table, swinv2, swinv2_weights
from attn_flax.mechanisms.self_attention.talking_heads import (
    attend_by_heads,
    mix_heads,
    talking_heads,
    talking_heads_weights,
)
from attn_flax.mechanisms.self_attention.xca import xca, xca_weights
from attn_flax.mechanisms.spatial.aa_conv import aa_conv, aa_conv_attention, aa_conv_attention_weights
from attn_flax.mechanisms.spatial.attention_gate import attention_gate, attention_gate_weights
from attn_flax.mechanisms.spatial.axial import axial_attention, axial_attention_weights
from attn_flax.mechanisms.spatial.bat import bat, bat_weights
from attn_flax.mechanisms.spatial.criss_cross import criss_cross, criss_cross_weights
from attn_flax.mechanisms.spatial.deformable import deformable_attention, deformable_locations, deformable_weights
from attn_flax.mechanisms.spatial.double_attention import double_attention, double_attention_weights
from attn_flax.mechanisms.spatial.emanet import (
    emanet_attention,
    emanet_attention_weights,
    expectation_maximization,
    unit_bases,
)
from attn_flax.mechanisms.spatial.external_attention import external_attention, external_attention_weights
from attn_flax.mechanisms.spatial.focal_modulation import focal_modulation, focal_modulation_weights
from attn_flax.mechanisms.spatial.gcnet import gcnet, gcnet_weights
from attn_flax.mechanisms.spatial.global_filter import global_filter, global_filter_kernel
from attn_flax.mechanisms.spatial.gnconv import gnconv
from attn_flax.mechanisms.spatial.hamburger import hamburger, hamburger_factors, hamburger_weights
from attn_flax.mechanisms.spatial.involution import involution, involution_weights
from attn_flax.mechanisms.spatial.lka import lka, lka_weights
from attn_flax.mechanisms.spatial.non_local import non_local, non_local_weights
from attn_flax.mechanisms.spatial.poolformer import poolformer, poolformer_weights
from attn_flax.mechanisms.spatial.sagan import sagan, sagan_weights
from attn_flax.mechanisms.spatial.self_attention_2d import self_attention_2d, self_attention_2d_weights
from attn_flax.mechanisms.spatial.sgu import sgu, sgu_weights
from attn_flax.mechanisms.spatial.stn import stn, stn_grid
from attn_flax.mechanisms.spatial.tokenlearner import (
    tokenlearner,
    tokenlearner_v11,
    tokenlearner_v11_weights,
    tokenlearner_weights,
)
from attn_flax.mechanisms.spatial_temporal.divided_st import divided_st_attention, divided_st_attention_with_class_token
from attn_flax.mechanisms.spatial_temporal.dstt import dstt_attention, dstt_attention_weights
from attn_flax.mechanisms.spatial_temporal.factorised_dot import (
    factorised_dot_attention,
    factorised_dot_attention_weights,
)
from attn_flax.mechanisms.temporal.gltr import gltr, gltr_pyramid, gltr_weights
from attn_flax.mechanisms.temporal.tam import tam, tam_weights
from attn_flax.mechanisms.temporal.temporal_mhsa import temporal_attention, temporal_attention_weights

__all__ = [
    "aa_conv",
    "aa_conv_attention",
    "aa_conv_attention_weights",
    "acmix_attention",
    "acmix_attention_weights",
    "acmix_convolution",
    "additive_attention",
    "additive_attention_weights",
    "aft",
    "aft_biased_sum",
    "aft_convolved_sum",
    "aft_sum",
    "aft_weights",
    "article_attention",
    "article_gate",
    "article_gate_weights",
    "article_sum_attention",
    "article_weights",
    "attend_by_heads",
    "attention_gate",
    "attention_gate_weights",
    "attention_pool",
    "attention_pool_weights",
    "axial_attention",
    "axial_attention_weights",
    "bam",
    "bam_weights",
    "bat",
    "bat_weights",
    "block_average",
    "bottleneck",
    "bottleneck_weights",
    "cascaded_group",
    "cascaded_group_weights",
    "cbam",
    "cbam_channel_weights",
    "cbam_spatial_weights",
    "channel_group_attention",
    "channel_group_attention_weights",
    "check_experts",
    "class_attention",
    "class_attention_weights",
    "coatnet_rel",
    "coatnet_rel_weights",
    "condconv",
    "condconv_weights",
    "continuous_position_table",
    "coord",
    "coord_weights",
    "cosine_basis",
    "cost_of_experts",
    "criss_cross",
    "criss_cross_weights",
    "cvt",
    "cvt_weights",
    "danet_channel",
    "danet_channel_weights",
    "dat",
    "dat_bias",
    "dat_positions",
    "dat_sample",
    "dat_weights",
    "deepvit_reattention",
    "deepvit_reattention_weights",
    "deformable_attention",
    "deformable_locations",
    "deformable_weights",
    "dia",
    "dia_state",
    "diff_attention",
    "diff_attention_weights",
    "distance_bias",
    "divided_st_attention",
    "divided_st_attention_with_class_token",
    "double_attention",
    "double_attention_weights",
    "dstt_attention",
    "dstt_attention_weights",
    "dynamic_conv",
    "dynamic_conv_weights",
    "eca",
    "eca_weights",
    "ela",
    "ela_weights",
    "emanet_attention",
    "emanet_attention_weights",
    "enc",
    "enc_assignment",
    "enc_codes",
    "enc_weights",
    "ese",
    "ese_weights",
    "eva_rope",
    "eva_rope_weights",
    "expectation_maximization",
    "external_attention",
    "external_attention_weights",
    "factorised_dot_attention",
    "factorised_dot_attention_weights",
    "fca",
    "fca_weights",
    "focal_modulation",
    "focal_modulation_weights",
    "gather_averages",
    "gcnet",
    "gcnet_weights",
    "gct",
    "gct_weights",
    "ge",
    "ge_weights",
    "global_filter",
    "global_filter_kernel",
    "gltr",
    "gltr_pyramid",
    "gltr_weights",
    "gnconv",
    "gpsa",
    "gpsa_weights",
    "grid_attention",
    "grid_attention_weights",
    "grn",
    "grn_weights",
    "gsop",
    "gsop_weights",
    "halo",
    "halo_weights",
    "hamburger",
    "hamburger_factors",
    "hamburger_weights",
    "highway",
    "highway_weights",
    "hourglass",
    "involution",
    "involution_weights",
    "lambda_layer",
    "lambda_layer_weights",
    "linear_self_attention",
    "linear_self_attention_weights",
    "lka",
    "lka_weights",
    "local_lambdas",
    "lsa",
    "lsa_weights",
    "matrix_sqrt",
    "mhsa",
    "mhsa_weights",
    "mix_heads",
    "mixed_pooling",
    "mixed_pooling_context",
    "nearest_odd",
    "neighborhood",
    "neighborhood_weights",
    "non_local",
    "non_local_weights",
    "orthogonal_features",
    "outlook",
    "outlook_weights",
    "performer",
    "performer_features",
    "performer_weights",
    "polarized",
    "polarized_channel_weights",
    "polarized_spatial_weights",
    "poolformer",
    "poolformer_weights",
    "position_weights",
    "positive_features_log",
    "psa_pyramid",
    "psa_pyramid_weights",
    "pyramid_context",
    "rca",
    "rca_weights",
    "relative_lambdas",
    "relu_linear_attention",
    "relu_linear_weights",
    "residual_attention_net",
    "residual_attention_net_weights",
    "sagan",
    "sagan_weights",
    "scconv",
    "scconv_weights",
    "scse",
    "scse_spatial_weights",
    "se",
    "se_weights",
    "self_attention_2d",
    "self_attention_2d_weights",
    "separable_attention",
    "separable_attention_weights",
    "sge",
    "sge_weights",
    "sgu",
    "sgu_weights",
    "shifts",
    "shuffle_attention",
    "shuffle_attention_weights",
    "simam",
    "simam_weights",
    "similarity_weights",
    "simple_coord",
    "simple_coord_weights",
    "single_head",
    "single_head_weights",
    "sk",
    "sk_weights",
    "soca",
    "soca_weights",
    "softmax_of_query",
    "softmax_of_scores",
    "softmax_of_values",
    "split_attention",
    "split_attention_weights",
    "sra",
    "sra_weights",
    "srm",
    "srm_weights",
    "stn",
    "stn_grid",
    "strip",
    "strip_context",
    "strip_pooling",
    "strip_pooling_weights",
    "strip_weights",
    "swin",
    "swin_weights",
    "swinv2",
    "swinv2_weights",
    "talking_heads",
    "talking_heads_weights",
    "tam",
    "tam_weights",
    "temporal_attention",
    "temporal_attention_weights",
    "tokenlearner",
    "tokenlearner_v11",
    "tokenlearner_v11_weights",
    "tokenlearner_weights",
    "triplet",
    "triplet_weights",
    "unit_bases",
    "xca",
    "xca_weights",
    "z_pool",
]
