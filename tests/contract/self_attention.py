"""The mechanisms by which tokens ask tokens, or a learned vector does."""

from tests.contract.case import Case, rows_sum_to_one

CASES = {
    "attention_pool": Case((7, 5, 8), (2, 35), rows_sum_to_one, {"num_heads": 2, "mlp_ratio": 3}, out_shape=(8,)),
    "mhsa": Case((7, 5, 8), (2, 35, 35), rows_sum_to_one, {"num_heads": 2}),
}
