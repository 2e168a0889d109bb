"""Proves that no word is two instructions.

Two rows overlap when some word satisfies both, whatever the hart's extensions: nothing is lost by ignoring them,
for no two rows of the table exclude each other by extension.
"""

from collections.abc import Iterable
from itertools import combinations

from smp.row import ROWS, Row

# (meant, other): where both accept a word, the first is meant; its group comes first in smp/rows.
ALLOWED = {
    # A fence with no predecessor but writes and no successor: on a hart without Zihintpause it is just that.
    ("pause", "fence"),
}


class OverlapError(Exception):
    """Two rows accept the same word, or an exception to that is stale."""


def common_word(a: Row, b: Row) -> int | None:
    """A word that both rows accept; None if there is none.

    Only bits that a restricted field of either row touches and no mask fixes can matter: those are tried.
    """
    if a.bits != b.bits or (a.match ^ b.match) & a.mask & b.mask:
        return None
    word = a.match | b.match
    for trial in _fillings(word, _restricted(a) | _restricted(b), a.mask | b.mask):
        if a.accepts(trial) and b.accepts(trial):
            return trial
    return None


def _restricted(row: Row) -> int:
    """The bits of all fields that may not have some value."""
    pieces = [piece for name in row.excluded for piece in row.fields[name].pieces]
    return sum(((1 << width) - 1) << low for low, width, _ in pieces)


def _fillings(word: int, free: int, fixed: int) -> Iterable[int]:
    """The word with all combinations of its free bits, largest first (restrictions mostly forbid 0)."""
    free &= ~fixed
    subset = free
    while True:
        yield word | subset
        if not subset:
            return
        subset = (subset - 1) & free


def check(rows: Iterable[Row] | None = None, allowed: Iterable[tuple[str, str]] = ALLOWED) -> None:
    """Raise `OverlapError` unless the rows' words are disjoint but for `allowed`, and all of that is needed."""
    table = list(ROWS.values() if rows is None else rows)
    unused = set(allowed)
    for a, b in combinations(table, 2):
        word = common_word(a, b)
        if word is None:
            continue
        if (a.name, b.name) not in unused:
            raise OverlapError(f"{word:#0{2 + a.bits // 4}x} is both {a.name} and {b.name}")
        unused.remove((a.name, b.name))
    if unused:
        raise OverlapError(f"the rows of {sorted(unused)} don't overlap (or not in that order): remove the exception")
