"""The mechanisms over branches."""

from tests.contract.case import Case, between_zero_and_one, columns_sum_to_one, rows_sum_to_one

CASES = {
    "sk": Case((7, 5, 8), (2, 8), columns_sum_to_one, {"groups": 4, "hidden": 6}),
    "split_attention": Case((7, 5, 8), (2, 8), columns_sum_to_one, {"groups": 2, "hidden": 6}),
    "splat": Case((7, 5, 8), (2, 8), columns_sum_to_one, {"hidden": 6}),
    "condconv": Case((7, 5, 8), (8,), between_zero_and_one, {"use_bias": True, "routing_bias": True}),
    "dynamic_conv": Case((7, 5, 8), (4,), rows_sum_to_one, {"groups": 2, "temperature": 2.0}),
    "highway": Case((7, 5, 8), (7, 5, 2, 8), between_zero_and_one, {}),
    "acmix": Case((7, 5, 8), (7, 5, 2, 25), rows_sum_to_one, {"heads": 2, "window": 5}),
}
