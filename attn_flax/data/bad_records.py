"""Damaged records: skipped, told of and counted, until there are too many."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from grain.sources import RandomAccessDataSource

from attn_flax.checks import check
from attn_flax.data.collate import Collate
from attn_flax.data.errors import CorruptRecordError
from attn_flax.data.workers import shielded

NONE = -1


class BadRecords:
    """The damaged records that were met, each counted once.

    Args:
        limit: how many to skip; one more is an error.
        tell: is given a message for each.

    Raises:
        InputError: a negative limit.
    """

    def __init__(self, limit: int = 0, tell: Callable[[str], None] = print):
        check(limit >= 0, f"data.max_bad must not be negative, got {limit}.")
        self._limit = limit
        self._tell = tell
        self._known: set[tuple[int, int]] = set()
        self._messages: set[str] = set()

    @property
    def count(self) -> int:
        """How many there were so far."""
        return len(self._messages)

    def read(self, source: RandomAccessDataSource, index: int) -> dict | None:
        """The record, or None if it is damaged.

        Raises:
            CorruptRecordError: there are more than the limit; the message names the record.
        """
        try:
            return source[index]
        except CorruptRecordError as error:
            self._note(str(error))
            return None

    def note(self, source: RandomAccessDataSource, indices: Sequence[int]) -> None:
        """Takes in what others met; `NONE` among the indices stands for nothing.

        Raises:
            CorruptRecordError: as `read`.
        """
        for index in indices:
            if index != NONE and (id(source), index) not in self._known:
                self._known.add((id(source), index))
                self.read(source, index)

    def _note(self, message):
        if message in self._messages:
            return
        self._messages.add(message)
        if self.count > self._limit:
            raise CorruptRecordError(
                f"{message}\n(damaged record {self.count}; --data.max_bad {self._limit} skips no more than that.)"
            )
        self._tell(f"skipped damaged record {self.count} of at most {self._limit}: {message}")


@dataclasses.dataclass(frozen=True)
class Substituting:
    """A source that gives the next readable record for a damaged one, with the index of that one under "bad"."""

    source: RandomAccessDataSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        count = len(self.source)
        for candidate in range(index, index + count):
            try:
                return self.source[candidate % count] | {"bad": NONE if candidate == index else index}
            except CorruptRecordError as error:
                last = error
        raise CorruptRecordError(f"none of {count} records can be read. {last}")


@dataclasses.dataclass(frozen=True)
class MarkedCollate:
    """Batches with what the records have under "bad"."""

    collate: Collate

    def __call__(self, records: Sequence[dict]) -> dict[str, np.ndarray]:
        """The batch of these records."""
        return self.collate(records) | {"bad": np.array([record["bad"] for record in records])}


class CountedIterator:
    """Batches without their mark "bad", which is noted in this process, wherever they were made."""

    def __init__(self, batches: Iterator[dict], source: RandomAccessDataSource, bad: BadRecords):
        self._batches = batches
        self._source = source
        self._bad = bad
        self._start = shielded()  # the first batch starts the workers

    def __iter__(self) -> "CountedIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        with self._start:
            batch = dict(next(self._batches))
        self._start = contextlib.nullcontext()
        self._bad.note(self._source, batch.pop("bad").tolist())
        return batch

    def close(self) -> None:
        """Ends the processes that prepare batches; there are none after that."""
        self._batches.close()
        self._batches = iter(())  # Grain's iterators complain if Python ends before they are gone
