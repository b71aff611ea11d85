"""The mechanisms by which tokens ask tokens, or a learned vector does."""

from tests.contract.case import Case, at_least_zero, finite_and_varied, rows_sum_to_one

TILES = "whole tiles are multiplied, of which the windows are a part"

CASES = {
    "additive": Case((7, 5, 6), (35,), finite_and_varied),
    "aft": Case((7, 5, 6), (6, 35, 35), rows_sum_to_one, {"size": (7, 5)}),
    "aft_conv": Case((7, 5, 6), (6, 35, 35), rows_sum_to_one, {"window": 3, "num_heads": 2}),
    "aft_local": Case((7, 5, 6), (6, 35, 35), rows_sum_to_one, {"size": (7, 5), "window": 2}),
    "aft_simple": Case((7, 5, 6), (6, 35, 35), rows_sum_to_one),
    "attention_pool": Case((7, 5, 8), (2, 35), rows_sum_to_one, {"num_heads": 2, "mlp_ratio": 3}, out_shape=(8,)),
    "block_attention": Case((6, 9, 8), (6, 2, 9, 9), rows_sum_to_one, {"head_dim": 4, "window": 3}),
    "bottleneck": Case((7, 5, 8), (2, 35, 35), rows_sum_to_one, {"size": (7, 5), "num_heads": 2}),
    "cascaded_group": Case(
        (5, 7, 6),
        (6, 2, 9, 9),
        rows_sum_to_one,
        {"num_heads": 2, "key_dim": 4, "kernel_sizes": (5, 3), "window": 3},
    ),
    "class_attention": Case((7, 6), (2, 7), rows_sum_to_one, {"num_heads": 2}, out_shape=(6,)),
    "coatnet_rel": Case((7, 5, 8), (2, 35, 35), rows_sum_to_one, {"size": (7, 5), "head_dim": 4}),
    "cosformer_performer": Case((7, 5, 8), (2, 35, 35), rows_sum_to_one, {"num_heads": 2, "num_features": 11}),
    "cvt": Case((7, 5, 8), (2, 35, 12), rows_sum_to_one, {"num_heads": 2}),
    "dat": Case(
        (7, 5, 8),
        (4, 35, 12),
        rows_sum_to_one,
        {"size": (5, 3), "num_heads": 4, "kernel_size": 3, "stride": 2},
    ),
    "deepvit_reattention": Case((7, 5, 6), (3, 35, 35), finite_and_varied, {"num_heads": 3}),
    "diff_attention": Case((7, 5, 12), (2, 35, 35), finite_and_varied, {"num_heads": 2}),
    "dilated_neighborhood": Case(
        (7, 9, 8), (7, 9, 2, 9), rows_sum_to_one, {"num_heads": 2, "kernel_size": 3}, computes_more=TILES
    ),
    "eva_rope": Case((7, 5, 16), (2, 35, 35), rows_sum_to_one, {"num_heads": 2}),
    "gpsa": Case(
        (7, 5, 6),
        (2, 35, 35),
        rows_sum_to_one,
        {"num_heads": 2},
        zero_gradients={"[0]['pos_proj']['bias']": "a bias of all positions cancels in the softmax and is not read"},
    ),
    "grid_attention": Case((6, 9, 8), (6, 2, 9, 9), rows_sum_to_one, {"head_dim": 4, "window": 3}),
    "halo": Case((7, 5, 8), (6, 2, 9, 25), rows_sum_to_one, {"num_heads": 2, "block_size": 3, "halo_size": 1}),
    "lambda": Case((7, 5, 8), (2, 35, 35), finite_and_varied, {"num_heads": 2, "key_features": 3, "kernel_size": 3}),
    "linear_attention": Case((7, 5, 8), (2, 35, 35), rows_sum_to_one, {"num_heads": 2}),
    "linear_sra": Case((7, 5, 8), (2, 35, 49), rows_sum_to_one, {"num_heads": 2}),
    "lsa": Case((7, 5, 8), (6, 2, 9, 9), rows_sum_to_one, {"head_dim": 4, "window": 3}),
    "lsa_gsa": Case((7, 5, 8), {"lsa": (6, 2, 9, 9), "gsa": (2, 35, 6)}, rows_sum_to_one, {"head_dim": 4, "window": 3}),
    "mhsa": Case((7, 5, 8), (2, 35, 35), rows_sum_to_one, {"num_heads": 2}),
    "neighborhood": Case(
        (7, 5, 8), (7, 5, 2, 9), rows_sum_to_one, {"num_heads": 2, "kernel_size": 3}, computes_more=TILES
    ),
    "outlook": Case((7, 5, 8), (7, 5, 2, 9, 9), rows_sum_to_one, {"num_heads": 2}),
    "relu_linear": Case((7, 5, 12), (6, 35, 35), at_least_zero, {"dim": 4}),
    "separable_mobilevit": Case((7, 5, 6), (35,), rows_sum_to_one),
    "single_head": Case((7, 5, 8), (35, 35), rows_sum_to_one, {"key_dim": 4, "partial_channels": 3}),
    "sra": Case((7, 5, 8), (2, 35, 6), rows_sum_to_one, {"num_heads": 2}),
    "swin": Case((7, 5, 8), (6, 2, 9, 9), rows_sum_to_one, {"head_dim": 4, "window": 3}),
    "swinv2": Case((7, 5, 8), (6, 2, 9, 9), rows_sum_to_one, {"head_dim": 4, "window": 3}),
    "talking_heads": Case((7, 5, 6), (3, 35, 35), finite_and_varied, {"num_heads": 3}),
    "xca": Case((7, 5, 6), (2, 3, 3), rows_sum_to_one, {"num_heads": 2}),
}
