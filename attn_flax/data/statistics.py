"""What images are standardised by."""

import numpy as np
from grain.sources import RandomAccessDataSource

from attn_flax.data.bad_records import BadRecords
from attn_flax.data.collate import convert_channels
from attn_flax.data.errors import CorruptRecordError
from attn_flax.data.kinds import LABELLED_IMAGES, Kind

STATISTICS_RECORDS = 2048
STD_FLOOR = 1e-3


def channel_statistics(
    source: RandomAccessDataSource, channels: int, *, kind: Kind = LABELLED_IMAGES, bad: BadRecords | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The channels' means and standard deviations over all pixels, in [0, 1].

    Taken over 2,048 records at most, always the same ones; a deviation is never below 1e-3, so that constant channels
    can be standardised.

    Args:
        source: records of this kind.
        channels: how many channels the pictures are given first.
        kind: of the records.
        bad: counts the damaged records, which are left out; by default the first is an error.

    Raises:
        CorruptRecordError: more records than `bad` allows cannot be read, or none can.
    """
    bad = bad or BadRecords()
    chosen = np.random.default_rng(0).permutation(len(source))[:STATISTICS_RECORDS]
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for index in chosen.tolist():
        record = bad.read(source, index)
        if record is None:
            continue
        pixels = convert_channels(record[kind.pictures], channels).reshape(-1, channels) / 255
        count += len(pixels)
        total += pixels.sum(0)
        squares += (pixels**2).sum(0)
    if not count:
        raise CorruptRecordError(f"none of {len(chosen)} training records can be read.")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, STD_FLOOR**2))
    return tuple(mean.tolist()), tuple(std.tolist())
