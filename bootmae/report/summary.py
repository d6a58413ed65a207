"""Result rows summarized over seeds: mean, spread and paired differences."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..results.rows import ResultRow

BLOCK = re.compile(r', block (\d+) of (\d+)$')  # end of the protocol of frozen features


@dataclass(frozen=True)
class Spread:
    """One method's numbers over seeds.

    Attributes:
        values: Percent by seed.
        mean: Mean over seeds.
        std: Sample standard deviation over seeds (n - 1); None for a single seed.
    """

    values: dict[int, float]
    mean: float
    std: float | None

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Difference:
    """Paired difference of two methods over their shared seeds, in points.

    Attributes:
        n: Number of shared seeds.
        mean: Mean difference.
        standard_error: Standard error of that mean; None for a single shared seed.
    """

    n: int
    mean: float
    standard_error: float | None


@dataclass(frozen=True)
class Comparison:
    """All methods under one data set, task, number of labels, metric and protocol.

    Attributes:
        methods: Spread by method, in order of first appearance.
        fingerprints: Those of the test data (``data_hash``) of a seed whose methods have different ones, else empty.
    """

    data: str
    task: str
    labels: str
    metric: str
    protocol: str
    methods: dict[str, Spread]
    fingerprints: tuple[str, ...] = ()


def spread_of(values: dict[int, float]) -> Spread:
    """Mean and sample standard deviation of values by seed."""
    numbers = list(values.values())
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(dict(values), statistics.fmean(numbers), std)


def paired_difference(first: Spread, second: Spread) -> Difference | None:
    """First minus second over the shared seeds; None if they share none."""
    shared = [seed for seed in first.values if seed in second.values]
    if not shared:
        return None
    pairs = spread_of({seed: first.values[seed] - second.values[seed] for seed in shared})
    error = None if pairs.std is None else pairs.std / math.sqrt(pairs.n)
    return Difference(pairs.n, pairs.mean, error)


def summarize(rows: Iterable[ResultRow]) -> list[Comparison]:
    """Mean and spread of the measured rows of each method; published and missing rows are left out."""
    groups: dict[tuple, list[ResultRow]] = {}
    for row in rows:
        if row.measured:
            groups.setdefault((row.data, row.task, row.labels, row.metric, row.protocol), []).append(row)
    return [_compare(key, group) for key, group in groups.items()]


def _compare(key: tuple, rows: list[ResultRow]) -> Comparison:
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        values.setdefault(row.method, {})[row.seed] = row.value
    methods = {method: spread_of(by_seed) for method, by_seed in values.items()}
    fingerprints: dict[int, dict[str, None]] = {}
    for row in rows:
        if row.data_hash:
            fingerprints.setdefault(row.seed, {})[row.data_hash] = None
    different = next((tuple(found) for found in fingerprints.values() if len(found) > 1), ())
    return Comparison(*key, methods=methods, fingerprints=different)


def block_of(item: Comparison) -> int:
    """The block whose output was evaluated; 0 if the protocol names none."""
    found = BLOCK.search(item.protocol)
    return int(found[1]) if found else 0


def by_blocks(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Groups of comparisons that differ only in the block, sorted by block, in order of first appearance."""
    groups: dict[tuple, list[Comparison]] = {}
    for item in comparisons:
        place = item.data, item.task, item.labels, item.metric, BLOCK.sub(r' of \2', item.protocol)
        groups.setdefault(place, []).append(item)
    return [sorted(group, key=block_of) for group in groups.values()]


def last_blocks(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons without those of earlier blocks."""
    last = [group[-1] for group in by_blocks(comparisons)]
    return [item for item in comparisons if any(item is other for other in last)]
