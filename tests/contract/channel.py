"""The mechanisms over channels."""

from tests.contract.case import Case, between_zero_and_one

CASES = {
    "se": Case((7, 5, 8), (8,), between_zero_and_one, {"reduction": 2}),
}
