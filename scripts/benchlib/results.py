"""Collects what was measured and compares it: medians, ratios repeat by repeat, geometric mean, equal checksums."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchlib.machine import Result

OURS, QEMU, NATIVE = "hartbeat", "qemu", "native"


@dataclass
class Results:
    """Seconds by (row, machine), one a repeat; None where a repeat failed, so that the repeats stay paired."""

    seconds: dict[tuple[str, str], list[float | None]] = field(default_factory=dict)
    checksums: dict[str, dict[str, str]] = field(default_factory=dict)
    costs: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, machine: str, row: str, seconds: float | None) -> None:
        self.seconds.setdefault((row, machine), []).append(seconds)

    def add_program(self, machine: str, row: str, result: Result | None) -> None:
        """A program's seconds; a checksum unlike the first one of its row is an error, and no number."""
        if result is None:
            return self.add(machine, row, None)
        first, wanted = next(iter(self.checksums.get(row, {machine: result.checksum}).items()))
        if result.checksum != wanted:
            self.error(f"{machine}: {row}: checksum {result.checksum}, but {wanted} on {first}")
            return self.add(machine, row, None)
        self.checksums.setdefault(row, {})[machine] = result.checksum
        self.add(machine, row, result.seconds)

    def add_cost(self, machine: str, what: str, value: float) -> None:
        self.costs.setdefault((what, machine), []).append(value)

    def error(self, text: str) -> None:
        if text not in self.errors:
            self.errors.append(text)

    def median(self, row: str, machine: str) -> float | None:
        values = [value for value in self.seconds.get((row, machine), []) if value is not None]
        return statistics.median(values) if values else None

    def ratio(self, row: str, over: str = QEMU, under: str = OURS) -> float | None:
        """The median of over's seconds / under's, each pair from the same repeat."""
        pairs = zip(self.seconds.get((row, over), []), self.seconds.get((row, under), []), strict=False)
        ratios = [a / b for a, b in pairs if a is not None and b is not None and b > 0]
        return statistics.median(ratios) if ratios else None


def geomean(ratios: Iterable[float | None]) -> float | None:
    """Of the ratios that there are."""
    known = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(known) if known else None
