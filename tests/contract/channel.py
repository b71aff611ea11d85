"""The mechanisms over channels."""

from tests.contract.case import Case, at_least_zero, between_zero_and_one, finite_and_varied, rows_sum_to_one


def between_zero_and_two(weights):
    finite_and_varied(weights)
    assert weights.min() >= 0
    assert weights.max() <= 2


CASES = {
    "ceca": Case((7, 5, 8), (8,), between_zero_and_one),
    "channel_attn_davit": Case((7, 5, 8), (2, 4, 4), rows_sum_to_one, {"groups": 2}),
    "eca": Case((7, 5, 8), (8,), between_zero_and_one),
    "ecam": Case((7, 5, 8), (8,), between_zero_and_one, {"reduction": 2}),
    "ese": Case((7, 5, 8), (8,), between_zero_and_one),
    "gct": Case((7, 5, 8), (8,), between_zero_and_two),
    "ge": Case((7, 5, 8), (7, 5, 8), between_zero_and_one, {"extent": 2}),
    "grn": Case((7, 5, 8), (8,), at_least_zero),
    "rca": Case((7, 5, 8), (8,), between_zero_and_one, {"reduction": 2}),
    "se": Case((7, 5, 8), (8,), between_zero_and_one, {"reduction": 2}),
    "srm": Case((7, 5, 8), (8,), between_zero_and_one),
}
