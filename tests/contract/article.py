"""The article's mechanisms."""

from tests.contract.case import Case, at_least_zero, rows_sum_to_one

CASES = {
    "article": Case((7, 5, 8), (35, 35), rows_sum_to_one),
    "article_gate": Case((7, 5, 16), (7, 5, 16), at_least_zero),
}
