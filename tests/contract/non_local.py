"""The mechanisms by which positions attend to positions, and their kin."""

import numpy as np

from tests.contract.case import Case, rows_sum_to_one


def map_sums_to_one(weights):
    np.testing.assert_allclose(weights.sum((-2, -1)), 1, rtol=1e-5)
    assert weights.min() >= 0


CASES = {
    "gcnet": Case((7, 5, 8), (7, 5), map_sums_to_one, {"reduction": 2}),
    "gca": Case((7, 5, 8), (7, 5), map_sums_to_one, {"reduction": 2}),
    "gc": Case((7, 5, 8), (7, 5), map_sums_to_one, {"reduction": 2}),
    "non_local": Case((7, 5, 8), (35, 35), rows_sum_to_one),
    "nl": Case((7, 5, 8), (35, 6), rows_sum_to_one, {"subsample": 2}),
    "double_attention": Case((7, 5, 8), {"gather": (2, 35), "distribute": (35, 2)}, rows_sum_to_one),
    "self_attention_2d": Case((7, 5, 8), (2, 35, 35), rows_sum_to_one, {"num_heads": 2}),
    "sagan": Case((7, 5, 8), (35, 35), rows_sum_to_one, {"reduction": 2}),
    "criss_cross": Case((7, 5, 8), (2, 7, 5, 12), rows_sum_to_one, {"reduction": 2}),
    "axial": Case((7, 5, 8), {"height": (5, 2, 7, 7), "width": (7, 2, 5, 5)}, rows_sum_to_one, {"num_heads": 2}),
    "external_attention": Case((7, 5, 8), (35, 6), rows_sum_to_one, {"units": 6}),
    "bat": Case((9, 6, 8), {"rows": (2, 3, 3), "columns": (2, 3, 3)}, rows_sum_to_one, {"block_size": 3, "groups": 2}),
    "danet": Case(
        (7, 5, 8),
        {"position": (35, 35), "channel": (4, 4)},
        rows_sum_to_one,
        {"reduction": 2, "query_reduction": 2},
    ),
}
