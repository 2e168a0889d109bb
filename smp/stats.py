"""What --stats prints when the machine has ended."""

import sys

from mem.regions import CODE_TABLE, HOT
from smp.codecache import CodeTable
from smp.config import MachineConfig
from smp.hart import Hart, hart_record
from smp.hot import HotBlocks


def print_stats(config: MachineConfig, wall: float) -> None:
    """One summary line, one each for the code cache and for loops, then a line for each hart, on stderr."""
    harts = [hart_record(n) for n in range(config.harts)]
    total = sum(h.instret for h in harts)
    lines = [f"hartbeat: {wall:.3f} s, {total} instructions, {total / wall / 1e6:.1f} MIPS, engine {config.engine}"]
    translates = config.translates
    if translates:
        lines.append(cache_line())
    if config.engine == "jit":
        lines.append(loops_line())
    for h in harts:
        busy = max(wall - h.wfi_ns / 1e9, 1e-9)
        lines.append(
            f"  hart {h.id}: {h.instret} instructions, {h.instret / busy / 1e6:.1f} MIPS busy, {h.traps} traps, "
            f"{h.interrupts} interrupts, {h.ipis} IPIs sent, {h.mmu.misses} TLB misses, "
            f"{h.mmu.second_hits} second-level hits, {h.mmu.walks} walks, "
            f"{h.pages_evicted} code pages, wfi {h.wfi_ns / 1e9:.3f} s{exits(h) if translates else ''}"
            + (f", {h.compared} compared" if config.engine == "check" else "")
        )
    print("\n".join(lines), file=sys.stderr)


def cache_line() -> str:
    """What the translator has made, for all harts."""
    t = CodeTable.at(CODE_TABLE)
    each = t.translate_ns / max(t.instructions, 1)
    emptied = f", emptied {t.emptied} times" if t.emptied else ""
    return (
        f"  translated: {t.blocks_made} blocks of {t.instructions} instructions, {t.used} bytes, "
        f"{t.translate_ns / 1e6:.1f} ms, {each:.0f} ns an instruction{emptied}"
    )


def loops_line() -> str:
    """What the optimizer has made."""
    hot = HotBlocks.at(HOT)
    return f"  optimizer: {hot.loops} loops optimized in {hot.compile_ns / 1e6:.1f} ms, {hot.again} of them again"


def exits(h: Hart) -> str:
    """How often translated code had to ask."""
    return f", {h.chain_misses} chain misses, {h.slow_accesses} slow accesses, {h.slow_steps} steps"
