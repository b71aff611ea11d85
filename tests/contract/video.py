"""The mechanisms on video."""

from tests.contract.case import Case, between_zero_and_one, rows_sum_to_one

CASES = {
    "temporal_mhsa": Case((3, 7, 5, 8), (7, 5, 2, 3, 3), rows_sum_to_one, {"num_heads": 2}),
    "tam": Case(
        (3, 7, 5, 8),
        {"importance": (3, 8), "kernel": (8, 5)},
        between_zero_and_one,
        {"num_frames": 3, "kernel_size": 5},
    ),
    "gltr": Case((5, 6), (5, 5), rows_sum_to_one, out_shape=(24,)),
    "factorised_dot": Case(
        (3, 7, 5, 8), {"spatial": (3, 2, 35, 35), "temporal": (7, 5, 2, 3, 3)}, rows_sum_to_one, {"num_heads": 4}
    ),
    "divided_st": Case(
        (3, 7, 5, 8), {"spatial": (3, 2, 35, 35), "temporal": (7, 5, 2, 3, 3)}, rows_sum_to_one, {"num_heads": 2}
    ),
    "dstt": Case((3, 6, 10, 8), (6, 2, 30, 30), rows_sum_to_one, {"num_heads": 2, "zones": (3, 2)}),
}
