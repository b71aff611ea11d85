"""Damaged records: skipped, told of and counted, until there are too many. Cleaned records: told of and counted."""

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
CLEANED_TOLD = 20
"""So many cleaned records are told of; further ones are only counted."""


class BadRecords:
    """The damaged and the cleaned records that were met, each counted once.

    Args:
        limit: how many damaged ones to skip; one more is an error.
        tell: is given a message for each.

    Raises:
        InputError: a negative limit.
    """

    def __init__(self, limit: int = 0, tell: Callable[[str], None] = print):
        check(limit >= 0, f"data.max_bad must not be negative, got {limit}.")
        self._limit = limit
        self._tell = tell
        self._known: set[tuple[int, int]] = set()
        self._damaged: set[str] = set()
        self._cleaned: set[str] = set()

    @property
    def count(self) -> int:
        """How many damaged records there were so far."""
        return len(self._damaged)

    @property
    def cleaned(self) -> int:
        """How many records were cleaned so far."""
        return len(self._cleaned)

    def read(self, source: RandomAccessDataSource, index: int) -> dict | None:
        """The record, or None if it is damaged.

        Raises:
            CorruptRecordError: there are more than the limit; the message names the record.
        """
        try:
            record = source[index]
        except CorruptRecordError as error:
            self._note_damage(str(error))
            return None
        if "cleaned" in record:
            self._note_cleaning(record["cleaned"])
        return record

    def note(self, source: RandomAccessDataSource, indices: Sequence[int]) -> None:
        """Takes in what others met; `NONE` among the indices stands for nothing.

        Raises:
            CorruptRecordError: as `read`.
        """
        for index in indices:
            if index != NONE and (id(source), index) not in self._known:
                self._known.add((id(source), index))
                self.read(source, index)

    def _note_damage(self, message):
        if message in self._damaged:
            return
        self._damaged.add(message)
        if self.count > self._limit:
            raise CorruptRecordError(
                f"{message}\n(damaged record {self.count}; --data.max_bad {self._limit} skips no more than that.)"
            )
        self._tell(f"skipped damaged record {self.count} of at most {self._limit}: {message}")

    def _note_cleaning(self, message):
        if message in self._cleaned:
            return
        self._cleaned.add(message)
        if self.cleaned <= CLEANED_TOLD:
            self._tell(f"cleaned {message}")
        elif self.cleaned == CLEANED_TOLD + 1:
            self._tell("cleaned further records, which are only counted.")


@dataclasses.dataclass(frozen=True)
class Substituting:
    """A source that gives the next readable record for a damaged one.

    Under "bad" is the index if there is something to note about the record that it asked for, damaged or cleaned.
    """

    source: RandomAccessDataSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        count = len(self.source)
        for candidate in range(index, index + count):
            try:
                record = self.source[candidate % count]
            except CorruptRecordError as error:
                last = error
            else:
                return record | {"bad": NONE if candidate == index and "cleaned" not in record else index}
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
