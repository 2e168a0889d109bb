"""What --stats prints when the machine has ended."""

import sys

from smp.config import MachineConfig
from smp.hart import hart_record


def print_stats(config: MachineConfig, wall: float) -> None:
    """One summary line, then a line for each hart, on stderr."""
    harts = [hart_record(n) for n in range(config.harts)]
    total = sum(h.instret for h in harts)
    lines = [f"hartbeat: {wall:.3f} s, {total} instructions, {total / wall / 1e6:.1f} MIPS, engine {config.engine}"]
    for h in harts:
        busy = max(wall - h.wfi_ns / 1e9, 1e-9)
        lines.append(
            f"  hart {h.id}: {h.instret} instructions, {h.instret / busy / 1e6:.1f} MIPS busy, {h.traps} traps, "
            f"{h.interrupts} interrupts, {h.ipis} IPIs sent, {h.mmu.misses} TLB misses, {h.mmu.walks} walks, "
            f"{h.pages_evicted} code pages, wfi {h.wfi_ns / 1e9:.3f} s"
        )
    print("\n".join(lines), file=sys.stderr)
