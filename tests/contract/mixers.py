"""The mechanisms that mix positions by windows, filters and pyramids."""

from tests.contract.case import Case, at_least_zero, between_zero_and_one, columns_sum_to_one, finite_and_varied


def window_sums_to_one(weights):
    at_least_zero(weights)
    assert abs(weights.sum((-2, -1)) - 1).max() < 1e-5


CASES = {
    "focal_modulation": Case((7, 5, 8), (7, 5, 8), finite_and_varied),
    "global_filter": Case((7, 5, 6), (7, 5, 6), finite_and_varied, {"size": (7, 5)}),
    "gnconv": Case((7, 5, 8), (7, 5, 14), finite_and_varied, {"order": 3}),
    "lka": Case((7, 5, 6), (7, 5, 6), finite_and_varied),
    "polarized": Case((7, 5, 8), {"channel": (8,), "spatial": (7, 5)}, between_zero_and_one),
    "poolformer": Case((7, 5, 6), (7, 5, 3, 3), window_sums_to_one),
    "psa_pyramid": Case((7, 5, 16), (4, 4), columns_sum_to_one, {"groups": (1, 2, 4, 4), "reduction": 2}),
    "residual_attention_net": Case((7, 5, 8), (7, 5, 8), between_zero_and_one, {"reduction": 1}),
    "scconv": Case((7, 5, 8), (7, 5, 4), between_zero_and_one, {"pooling": 2}),
    "sgu": Case((7, 6), (7, 3), finite_and_varied, {"tokens": 7}, out_shape=(7, 3)),
}
