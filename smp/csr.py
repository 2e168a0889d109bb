"""Control and status registers: one row each (privileged manual, "Control and Status Registers").

A row says how the register is read and written; the access rules that follow from its number (lowest privilege,
read-only) are applied once.  What is not in the table is an illegal instruction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mem.atomics import fetch_and32, fetch_or32
from mem.clock import mtime
from mem.log import LOG_UNIMP, NO_CSR, log
from mem.machine import Machine
from mem.mailbox import SEIP, SSIP, STIP, mailbox
from mem.mmu import PMP_LOCK
from mem.native import Native, call, emitted, field, native, read, ref, write
from mem.regions import MACHINE as MACHINE_RECORD
from mem.word import I64, V, builder, const, raw, select
from smp.cpu import EXT_PMP, EXT_SSTC, EXT_SVADU, EXT_SVPBMT, EXT_ZICNTR, EXT_ZIHPM
from smp.hart import (
    FS,
    MACHINE,
    MIE,
    MPIE,
    MPP,
    MPP_SHIFT,
    MPRV,
    MXR,
    SD,
    SIE,
    SPIE,
    SPP,
    SUM,
    SUPERVISOR,
    TSR,
    TVM,
    TW,
    USER,
    UXL,
    Hart,
)
from smp.spaces import flush_translations, switch_space
from smp.trap import STCE, pending, timers_due, update_view

ALL = (1 << 64) - 1
ADUE, PBMTE = 1 << 61, 1 << 62
ENVCFG_LOW = 0xF1  # FIOM, CBIE, CBCFE, CBZE
MSTATUS_WRITABLE = SIE | MIE | SPIE | MPIE | SPP | MPP | FS | MPRV | SUM | MXR | TVM | TW | TSR
SSTATUS_WRITABLE = SIE | SPIE | SPP | FS | SUM | MXR
SSTATUS_READABLE = SSTATUS_WRITABLE | UXL | SD
SUPERVISOR_INTERRUPTS = 0x222
ALL_INTERRUPTS = 0xAAA
DELEGABLE = 0xB3FF


@dataclass
class Csr:
    """A register: `read` and `write` are natives, field names, or constants (None: writes are ignored)."""

    number: int
    name: str
    read: Any
    write: Any = None
    mask: int = ALL  # of a field's writable bits
    allowed: Native | None = None  # a native that says whether this access is allowed
    quiet: bool = False  # a write changes nothing that running code depends on


CSRS: dict[int, Csr] = {}


def csr(number: int, name: str, read_: Any, write_: Any = None, **rest: Any) -> None:
    """Declare a register."""
    assert number not in CSRS, name
    CSRS[number] = Csr(number, name, read_, write_, **rest)


def stored(number: int, name: str, mask: int = ALL, **rest: Any) -> None:
    """Declare a register that is a field of the hart record."""
    csr(number, name, name, name, mask=mask, **rest)


@native(inline=True)
def extensions() -> int:
    return Machine.at(MACHINE_RECORD).extensions


# Floating-point state


@native
def fp_on(h: Hart) -> int:
    return h.mstatus & FS != 0


@native
def fp_dirty(h: Hart) -> None:
    h.mstatus |= FS


@native
def write_fflags(h: Hart, value: int) -> None:
    h.fflags = value & 31
    fp_dirty(h)


@native
def write_frm(h: Hart, value: int) -> None:
    h.frm = value & 7
    fp_dirty(h)


@native
def read_fcsr(h: Hart) -> int:
    return h.fflags | h.frm << 5


@native
def write_fcsr(h: Hart, value: int) -> None:
    h.fflags = value & 31
    h.frm = (value >> 5) & 7
    fp_dirty(h)


csr(0x001, "fflags", "fflags", write_fflags, allowed=fp_on, quiet=True)
csr(0x002, "frm", "frm", write_frm, allowed=fp_on, quiet=True)
csr(0x003, "fcsr", read_fcsr, write_fcsr, allowed=fp_on, quiet=True)

# Counters: cycles are retired instructions


@native
def retired(h: Hart) -> int:
    """Instructions retired before the current one."""
    return h.instret + h.quantum - h.left


@native
def read_mcycle(h: Hart) -> int:
    return h.cycle_stopped if h.mcountinhibit & 1 else retired(h) + h.cycle_offset


@native
def read_minstret(h: Hart) -> int:
    return h.instret_stopped if h.mcountinhibit & 4 else retired(h) + h.instret_offset


@native
def write_mcycle(h: Hart, value: int) -> None:
    """The next instruction reads the value written, so this one does not count."""
    h.cycle_stopped = value
    h.cycle_offset = value - retired(h) - 1


@native
def write_minstret(h: Hart, value: int) -> None:
    h.instret_stopped = value
    h.instret_offset = value - retired(h) - 1


@native
def write_mcountinhibit(h: Hart, value: int) -> None:
    cycle = read_mcycle(h)
    instret = read_minstret(h)
    h.mcountinhibit = value & 5
    write_mcycle(h, cycle)
    write_minstret(h, instret)


@native
def read_time(h: Hart) -> int:
    """Software that has seen its deadline pass may count on the interrupt once it enables it."""
    now = mtime()
    timers_due(h, now)
    return now


@native
def counter_allowed(h: Hart, number: int) -> int:
    """Whether this processor has the unprivileged counter, and mcounteren and scounteren let this mode read it."""
    if not extensions() & select(number & 31 < 3, EXT_ZICNTR, EXT_ZIHPM):
        return 0
    bit = 1 << (number & 31)
    if h.privilege < MACHINE and not h.mcounteren & bit:
        return 0
    return not (h.privilege == USER and not h.scounteren & bit)


csr(0xB00, "mcycle", read_mcycle, write_mcycle, quiet=True)
csr(0xB02, "minstret", read_minstret, write_minstret, quiet=True)
csr(0x320, "mcountinhibit", "mcountinhibit", write_mcountinhibit)
csr(0xC00, "cycle", read_mcycle, allowed=counter_allowed)
csr(0xC01, "time", read_time, allowed=counter_allowed)
csr(0xC02, "instret", read_minstret, allowed=counter_allowed)
for _n in range(3, 32):
    csr(0xB00 + _n, f"mhpmcounter{_n}", 0)
    csr(0xC00 + _n, f"hpmcounter{_n}", 0, allowed=counter_allowed)
    csr(0x320 + _n, f"mhpmevent{_n}", 0)
stored(0x306, "mcounteren", 0xFFFFFFFF)
stored(0x106, "scounteren", 0xFFFFFFFF)

# Status


@native
def read_mstatus(h: Hart) -> int:
    """UXL and SXL are 2 (64 bits); SD sums FS up."""
    return h.mstatus | 2 << 32 | 2 << 34 | select(h.mstatus & FS == FS, SD, 0)


@native
def write_mstatus(h: Hart, value: int) -> None:
    if (value & MPP) >> MPP_SHIFT == 2:
        value = value & ~MPP | h.mstatus & MPP
    if not extensions() >> 5 & 1:
        value &= ~FS
    h.mstatus = h.mstatus & ~MSTATUS_WRITABLE | value & MSTATUS_WRITABLE
    update_view(h)


@native
def read_sstatus(h: Hart) -> int:
    return read_mstatus(h) & SSTATUS_READABLE


@native
def write_sstatus(h: Hart, value: int) -> None:
    write_mstatus(h, h.mstatus & ~SSTATUS_WRITABLE | value & SSTATUS_WRITABLE)


@native
def read_misa(h: Hart) -> int:
    """MXL 2, the letters that are on, S and U."""
    return 2 << 62 | 1 << 18 | 1 << 20 | extensions() & 0x3FFFFFF


csr(0x300, "mstatus", read_mstatus, write_mstatus)
csr(0x100, "sstatus", read_sstatus, write_sstatus)
csr(0x301, "misa", read_misa)

# Interrupts


@native
def change_ssip(h: Hart, value: int) -> None:
    """SSIP lives in the mailbox, where other harts set it: one that came after the read must not be lost."""
    box = mailbox(h.id)
    if (value ^ h.seen_pending) & SSIP:
        if value & SSIP:
            fetch_or32(ref(box.pending), SSIP)
        else:
            fetch_and32(ref(box.pending), ~SSIP)


@native
def read_mip(h: Hart) -> int:
    h.seen_pending = pending(h)
    return h.seen_pending


@native
def write_mip(h: Hart, value: int) -> None:
    """STIP belongs to Sstc where that is on.  Every CSR instruction reads before it writes."""
    change_ssip(h, value)
    writable = SEIP | select(h.mmu.menvcfg & STCE != 0, 0, STIP)
    h.soft_pending = h.soft_pending & ~writable | value & writable


@native
def read_sip(h: Hart) -> int:
    return read_mip(h) & h.mideleg


@native
def write_sip(h: Hart, value: int) -> None:
    if h.mideleg & SSIP:
        change_ssip(h, value)


@native
def read_sie(h: Hart) -> int:
    return h.mie & h.mideleg


@native
def write_sie(h: Hart, value: int) -> None:
    h.mie = h.mie & ~h.mideleg | value & h.mideleg


stored(0x304, "mie", ALL_INTERRUPTS)
csr(0x344, "mip", read_mip, write_mip)
csr(0x104, "sie", read_sie, write_sie)
csr(0x144, "sip", read_sip, write_sip)
stored(0x303, "mideleg", SUPERVISOR_INTERRUPTS)
stored(0x302, "medeleg", DELEGABLE)


@native
def stimecmp_allowed(h: Hart, number: int) -> int:
    """Sstc: from S-mode it takes menvcfg.STCE and mcounteren.TM."""
    if not extensions() & EXT_SSTC:
        return 0
    return h.privilege == MACHINE or (h.mmu.menvcfg & STCE != 0 and h.mcounteren & 2 != 0)


@native
def write_stimecmp(h: Hart, value: int) -> None:
    h.stimecmp = value
    timers_due(h, mtime())


csr(0x14D, "stimecmp", "stimecmp", write_stimecmp, allowed=stimecmp_allowed)

# Trap handling


def vector_register(number: int, name: str) -> None:
    stored(number, name, ALL & ~2)


@native(inline=True)
def pc_mask() -> int:
    """Lowest bits that a pc can't have: bit 1 too without C."""
    return select(extensions() & 4 != 0, ALL & ~1, ALL & ~3)


@native
def read_mepc(h: Hart) -> int:
    return h.mepc & pc_mask()


@native
def write_mepc(h: Hart, value: int) -> None:
    h.mepc = value & ~1


@native
def read_sepc(h: Hart) -> int:
    return h.sepc & pc_mask()


@native
def write_sepc(h: Hart, value: int) -> None:
    h.sepc = value & ~1


vector_register(0x305, "mtvec")
vector_register(0x105, "stvec")
csr(0x341, "mepc", read_mepc, write_mepc, quiet=True)
csr(0x141, "sepc", read_sepc, write_sepc, quiet=True)
for _number, _name in ((0x340, "mscratch"), (0x342, "mcause"), (0x343, "mtval"),
                       (0x140, "sscratch"), (0x142, "scause"), (0x143, "stval")):  # fmt: skip
    stored(_number, _name, quiet=True)

# Configuration of lower modes, translation


@native
def legal_envcfg(old: int, value: int, mask: int) -> int:
    """CBIE 2 is reserved: such a write keeps the old field."""
    if value & 0x30 == 0x20:
        value = value & ~0x30 | old & 0x30
    return old & ~mask | value & mask


@native
def write_menvcfg(h: Hart, value: int) -> None:
    have = extensions()
    mask = ENVCFG_LOW | select(have & EXT_SVADU != 0, ADUE, 0)
    mask |= select(have & EXT_SVPBMT != 0, PBMTE, 0) | select(have & EXT_SSTC != 0, STCE, 0)
    h.mmu.menvcfg = legal_envcfg(h.mmu.menvcfg, value, mask)
    timers_due(h, mtime())
    flush_translations(h)


@native
def read_menvcfg(h: Hart) -> int:
    return h.mmu.menvcfg


@native
def write_senvcfg(h: Hart, value: int) -> None:
    h.senvcfg = legal_envcfg(h.senvcfg, value, ENVCFG_LOW)


@native
def read_satp(h: Hart) -> int:
    return h.mmu.satp


@native
def write_satp(h: Hart, value: int) -> None:
    """A mode that the machine lacks leaves the register as it is; ASIDs have all their 16 bits."""
    mode = value >> 60
    if mode == 0:
        value = 0
    elif mode < 8 or mode - 5 > Machine.at(MACHINE_RECORD).mmu_levels:
        return
    switch_space(h, value)
    update_view(h)


@native
def satp_allowed(h: Hart, number: int) -> int:
    return not (h.privilege == SUPERVISOR and h.mstatus & TVM)


csr(0x30A, "menvcfg", read_menvcfg, write_menvcfg)
csr(0x10A, "senvcfg", "senvcfg", write_senvcfg)
csr(0x180, "satp", read_satp, write_satp, allowed=satp_allowed)

# Physical memory protection


@native
def pmp_present(h: Hart, number: int) -> int:
    return extensions() & EXT_PMP != 0


@native
def read_pmpcfg(h: Hart, first: int) -> int:
    value = 0
    for i in range(8):
        value |= h.mmu.pmpcfg[first + i] << (8 * i)
    return value


@native
def write_pmpcfg(h: Hart, first: int, value: int) -> None:
    """Locked entries keep their value, and so do those asked for the reserved W without R."""
    for i in range(8):
        new = (value >> (8 * i)) & 0x9F
        if not h.mmu.pmpcfg[first + i] & PMP_LOCK and new & 3 != 2:
            h.mmu.pmpcfg[first + i] = new
    flush_translations(h)


@native
def read_pmpaddr(h: Hart, entry: int) -> int:
    return h.mmu.pmpaddr[entry]


@native
def write_pmpaddr(h: Hart, entry: int, value: int) -> None:
    """An entry is also locked as the base of a locked TOR range."""
    if h.mmu.pmpcfg[entry] & PMP_LOCK:
        return
    if entry < 15 and h.mmu.pmpcfg[entry + 1] & (PMP_LOCK | 0x18) == PMP_LOCK | 8:
        return
    h.mmu.pmpaddr[entry] = value & ((1 << 54) - 1)
    flush_translations(h)


def _indexed(index: int, reader: Native, writer: Native) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return (lambda h: call(reader, h, index)), (lambda h, value: call(writer, h, index, value))


for _n in (0, 2):
    _read, _write = _indexed(_n * 4, read_pmpcfg, write_pmpcfg)
    csr(0x3A0 + _n, f"pmpcfg{_n}", _read, _write, allowed=pmp_present)
for _n in range(16):
    _read, _write = _indexed(_n, read_pmpaddr, write_pmpaddr)
    csr(0x3B0 + _n, f"pmpaddr{_n}", _read, _write, allowed=pmp_present)

# Identity; no triggers


@native
def read_hartid(h: Hart) -> int:
    return h.id


csr(0xF14, "mhartid", read_hartid)
for _number, _name in ((0xF11, "mvendorid"), (0xF12, "marchid"), (0xF13, "mimpid"), (0xF15, "mconfigptr"),
                       (0x7A0, "tselect"), (0x7A1, "tdata1"), (0x7A2, "tdata2"), (0x7A3, "tdata3")):  # fmt: skip
    csr(_number, _name, 0)


# Access


def _switch(number: V, arm: Callable[[Csr], Any], otherwise: Any) -> V:
    """Emit a switch over all registers; each arm's word is the result."""
    b = builder()
    function = b.function
    default, done = function.append_basic_block("no_csr"), function.append_basic_block("done")
    switch = b.switch(raw(number), default)
    results = []
    for row in CSRS.values():
        block = function.append_basic_block(row.name)
        switch.add_case(const(row.number), block)
        b.position_at_end(block)
        result = arm(row)
        results.append((raw(0 if result is None else result), b.block))
        b.branch(done)
    b.position_at_end(default)
    b.branch(done)
    b.position_at_end(done)
    phi = b.phi(I64)
    phi.add_incoming(const(otherwise), default)
    for value, block in results:
        phi.add_incoming(value, block)
    return V(phi)


@emitted
def csr_allowed(h: Hart, number: int) -> int:
    """Whether the register exists and its own rule allows the access."""

    def arm(row: Csr) -> Any:
        if row.allowed is None:
            return 1
        return call(row.allowed, h, number) if len(row.allowed.parameters()) == 2 else call(row.allowed, h)

    return _switch(number, arm, 0)  # type: ignore[arg-type, return-value]


@emitted
def csr_exists(h: Hart, number: int) -> int:
    """Whether the table has the register."""
    return _switch(number, lambda row: 1, 0)  # type: ignore[arg-type, return-value]


@emitted
def csr_read(h: Hart, number: int) -> int:
    """The register's value; the access was allowed."""

    def arm(row: Csr) -> Any:
        if isinstance(row.read, str):
            return read(field(h, row.read))  # type: ignore[arg-type]
        if isinstance(row.read, Native):
            return call(row.read, h)
        return row.read(h) if callable(row.read) else row.read

    return _switch(number, arm, 0)  # type: ignore[arg-type, return-value]


@emitted
def csr_write(h: Hart, number: int, value: int) -> int:
    """Write the register; gives 1 when the hart must look at its state anew."""

    def arm(row: Csr) -> Any:
        if isinstance(row.write, str):
            place = field(h, row.write)  # type: ignore[arg-type]
            kept = read(place) & ~row.mask if row.mask != ALL else 0
            write(place, value & row.mask | kept)
        elif isinstance(row.write, Native):
            call(row.write, h, value)
        elif row.write is not None:
            row.write(h, value)
        return 0 if row.quiet else 1

    return _switch(number, arm, 0)  # type: ignore[arg-type, return-value]


@native
def csr_check(h: Hart, number: int, writes: int) -> int:
    """Whether the instruction may access the register: privilege and read-only by number, then the row's rule."""
    if (number >> 8) & 3 > h.privilege or (writes and number >> 10 == 3):
        return 0
    if not csr_exists(h, number):
        log(LOG_UNIMP, h.id, NO_CSR, number, writes)
        return 0
    return csr_allowed(h, number)


@native
def csr_base(h: Hart, number: int, old: int) -> int:
    """What csrrs and csrrc modify: of mip.SEIP only software's bit, not the line (manual, "mip and mie")."""
    if number == 0x344:
        return old & ~SEIP | h.soft_pending & SEIP
    return old
