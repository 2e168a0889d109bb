"""What --engine check says when the translator did something else than the interpreter."""

import ctypes
from collections.abc import Iterator

from mem.regions import CHECK, HOST
from smp.check import COMPARED, NAMES, STATE, WIDTHS, F, Foretold, X
from smp.disassembler import F_NAMES, X_NAMES, disassemble
from smp.hart import Hart

LABELS = [X_NAMES[n] for _, n in X] + [F_NAMES[n] for _, n in F] + list(NAMES)


def report(h: Hart) -> str:
    """Where they parted: the window's instructions, and the registers and bytes that differ."""
    w = Foretold.at(CHECK)
    first = w.pcs[0] if w.count or w.trap else h.pc
    lines = [f"\rhartbeat: --engine check: the translator differs from the interpreter in the window at {first:#x}"]
    lines.append(f"{w.ran} instructions were run of {w.count} foretold{', and a trap behind them' if w.trap else ''}")
    lines += instructions(w)
    if w.ran > w.count:
        lines += untaken_trap(w)
    else:
        trapped = w.trap and w.ran == w.count and h.traps != traps_before(w)
        lines += registers(h, w, w.ran + (1 if trapped else 0))
        lines += stores(w)
    return "\n".join(lines)


def untaken_trap(w: Foretold) -> Iterator[str]:
    """What the trap that the translator did not take would have changed."""
    yield "the translator went on where the interpreter traps:"
    for index, (label, (_, offset)) in enumerate(zip(LABELS, COMPARED, strict=True)):
        before, behind = (word(w, step, offset, WIDTHS[index]) for step in (w.count, w.count + 1))
        if before != behind:
            yield f"{label}: {before:#x} becomes {behind:#x}"


def traps_before(w: Foretold) -> int:
    return word(w, 0, Hart.offset("traps"), 8)


def word(w: Foretold, step: int, offset: int, size: int) -> int:
    """A field of a foretold state."""
    data = bytes(w.states)
    at = step * STATE + offset
    return int.from_bytes(data[at : at + size], "little")


def instructions(w: Foretold) -> Iterator[str]:
    for n in range(w.count + w.trap):
        mark = ">" if n == w.ran - 1 else " "
        yield f"{mark} {w.pcs[n]:#018x}:  {w.words[n]:08x}  {disassemble(w.words[n], w.pcs[n])}"


def registers(h: Hart, w: Foretold, step: int) -> Iterator[str]:
    record = bytes(h)  # type: ignore[call-overload]
    for index, (label, (_, offset)) in enumerate(zip(LABELS, COMPARED, strict=True)):
        size = WIDTHS[index]
        expected, got = word(w, step, offset, size), int.from_bytes(record[offset : offset + size], "little")
        if expected != got:
            yield f"{label}: interpreter {expected:#x}, translator {got:#x}"


def stores(w: Foretold) -> Iterator[str]:
    for access in w.store[: w.stores]:
        expected = access.value & (1 << 8 * access.size) - 1
        got = int.from_bytes(ctypes.string_at(HOST + access.pa, access.size), "little")
        if access.step < w.ran and expected != got:
            yield f"{access.size} bytes at {access.pa:#x}: interpreter {expected:#x}, translator {got:#x}"
