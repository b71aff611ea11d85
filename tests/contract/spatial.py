"""Mechanisms over the positions of a map: gates, tokens, windows, factors, samples, augmented convolution."""

from tests.contract.case import Case, at_least_zero, between_zero_and_one, finite_and_varied, rows_sum_to_one


def maps_sum_to_one(weights):
    rows_sum_to_one(weights.reshape(*weights.shape[:-2], -1))


EMBEDDING_IS_CONSTANT = "as in the authors' code, no derivative goes through the steps"

CASES = {
    "attention_gate": Case((7, 5, 6), (7, 5), between_zero_and_one, {"gating_channels": 4}, others=((3, 2, 4),)),
    "tokenlearner": Case((7, 5, 6), (3, 7, 5), between_zero_and_one, {"num_tokens": 3}, out_shape=(3, 6)),
    "tokenlearner_v11": Case((7, 5, 6), (3, 7, 5), maps_sum_to_one, {"num_tokens": 3, "hidden": 4}, out_shape=(3, 6)),
    "involution": Case((7, 5, 6), (7, 5, 3, 7, 7), finite_and_varied, {"group_channels": 2, "reduction": 2}),
    "emanet": Case(
        (7, 5, 6),
        (35, 4),
        rows_sum_to_one,
        {"num_bases": 4},
        zero_gradients=dict.fromkeys(("[0]['embed']['kernel']", "[0]['embed']['bias']"), EMBEDDING_IS_CONSTANT),
    ),
    "hamburger": Case((7, 5, 6), (35, 4), at_least_zero, {"hidden": 8, "rank": 4}),
    "deformable": Case((7, 5, 8), (7, 5, 2, 3), rows_sum_to_one, {"num_heads": 2, "num_points": 3}),
    "stn": Case((7, 5, 6), (7, 5, 2), finite_and_varied, {"bins": 2, "hidden": 4}),
    "aa_conv": Case((7, 5, 9), (2, 35, 35), rows_sum_to_one, {"size": (8, 5), "key_channels": 4, "num_heads": 2}),
}
