"""The mechanisms over strips of a map and over groups of channels with positions."""

from tests.contract.case import Case, between_zero_and_one, finite_and_varied

STRIPS = {"height": (7, 1, 8), "width": (1, 5, 8)}

CASES = {
    "coord": Case((7, 5, 8), STRIPS, between_zero_and_one),
    "simple_coord": Case((7, 5, 8), (7, 5, 8), between_zero_and_one),
    "scoord": Case((7, 5, 8), (7, 5, 8), between_zero_and_one),
    "ela": Case((7, 5, 8), STRIPS, between_zero_and_one, {"groups": 2, "kernel_size": 3}),
    "strip": Case((7, 5, 8), (7, 5, 8), between_zero_and_one),
    "triplet": Case(
        (7, 5, 8),
        {"height_width": (7, 5, 1), "height_channel": (7, 1, 8), "width_channel": (1, 5, 8)},
        between_zero_and_one,
    ),
    "simam": Case((7, 5, 8), (7, 5, 8), between_zero_and_one),
    "sge": Case((7, 5, 8), (7, 5, 2), between_zero_and_one, {"groups": 2}),
    "shuffle_attention": Case(
        (7, 5, 12), {"channel": (1, 1, 2, 3), "spatial": (7, 5, 2, 3)}, between_zero_and_one, {"groups": 2}
    ),
    "strip_pooling": Case((7, 5, 8), (7, 5, 8), between_zero_and_one),
    "mixed_pooling": Case((7, 5, 8), (7, 5, 8), finite_and_varied, {"reduction": 2, "pool_sizes": (3, 6)}),
}
