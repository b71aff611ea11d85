"""Channels and positions together, and the mechanisms over channels that know more of a map than its means."""

from attn_flax.mechanisms.channel.fca import TOP_FREQUENCIES
from tests.contract.case import Case, between_zero_and_one

CASES = {
    "bam": Case((7, 5, 8), (7, 5, 8), between_zero_and_one, {"reduction": 2, "dilation": 2}),
    "cbam": Case((7, 5, 8), {"channel": (8,), "spatial": (7, 5)}, between_zero_and_one, {"reduction": 2}),
    "dia": Case((7, 5, 8), (8,), between_zero_and_one, {"reduction": 2}, others=(((8,), (8,)),)),
    "enc": Case((7, 5, 8), {"channel": (8,), "assignment": (7, 5, 3)}, between_zero_and_one, {"num_codes": 3}),
    "fca": Case(
        (9, 5, 8), (8,), between_zero_and_one, {"reduction": 2, "size": (7, 8), "frequencies": TOP_FREQUENCIES[:4]}
    ),
    "gsop": Case((7, 5, 8), (8,), between_zero_and_one, {"hidden": 6, "stride": 2}),
    "lcbam": Case((7, 5, 8), {"channel": (8,), "spatial": (7, 5)}, between_zero_and_one, {"reduction": 2}),
    "scse": Case((7, 5, 8), {"channel": (8,), "spatial": (7, 5)}, between_zero_and_one),
    "soca": Case((7, 5, 8), (8,), between_zero_and_one, {"reduction": 2}),
}
