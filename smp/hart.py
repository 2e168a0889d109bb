"""The hart record: everything that belongs to one hart, at a fixed host address, written by its process alone."""

from mem.layout import Layout, layout, many, u32, u64
from mem.regions import HART_STRIDE, HARTS, MAX_HARTS
from mem.tlb import SPACES, Mmu

SINK = 32  # register number that stands for x0 as a destination: nothing reads it
FETCH_ENTRIES = 256  # pages of a bank, for the interpreter
CODE_ENTRIES = 1024  # for the translator, which compares a page that comes into a bank: a kernel needs hundreds
DECODED_PAGES = 512
JUMP_ENTRIES = 4096  # of each privilege's jump cache
JUMP_LOG = 64  # places in a jump cache that are emptied one by one; above, the whole is
CODE_BANKS = 2 * SPACES + 1
PAGE_WORDS = 64  # of the bits that say from which pages a jump cache has entries
NEVER = (1 << 64) - 1

USER, SUPERVISOR, MACHINE = 0, 1, 3

# mstatus (privileged manual, "Machine Status Registers")
SIE, MIE, SPIE, MPIE, SPP = 1 << 1, 1 << 3, 1 << 5, 1 << 7, 1 << 8
MPP, FS, MPRV, SUM, MXR = 3 << 11, 3 << 13, 1 << 17, 1 << 18, 1 << 19
TVM, TW, TSR, UXL, SXL, SD = 1 << 20, 1 << 21, 1 << 22, 3 << 32, 3 << 34, 1 << 63
MPP_SHIFT = 11

# Exceptions (privileged manual, "Machine Cause Register")
FETCH_MISALIGNED, FETCH_ACCESS, ILLEGAL, BREAKPOINT = 0, 1, 2, 3
ECALL_U, ECALL_S, ECALL_M, FETCH_PAGE = 8, 9, 11, 12
INTERRUPT = 1 << 63

# What a native loop returns to Python for.
STOPPED, LOGGED = 1, 2

# Translated floating point: FS is dirty and frm a mode that the host has; the pinned registers are loaded
FP_ALLOWED, FP_LOADED = 2, 1

# What the last LR left: 0 for a watched one, or one of these.  STRAY: its sequence was left by a jump; NOTHING: no
# reservation, whatever the shared table says.  In a fused sequence it is a host address (smp/templates_atomic.py).
CONSTRAINED, STRAY, NOTHING = 1, 2, 3
STATES = 4


@layout
class FetchEntry(Layout):
    """A page of code: virtual address and where its decoded instructions lie."""

    tag: u64
    page: u64


@layout
class FetchBank(Layout):
    entries: list[FetchEntry] = many(FETCH_ENTRIES)


@layout
class CodeBank(Layout):
    """Pages of code for the translator: virtual address and physical page."""

    entries: list[FetchEntry] = many(CODE_ENTRIES)


@layout
class JumpEntry(Layout):
    """A virtual pc and the translated code that begins there."""

    pc: u64
    code: u64


@layout
class Hart(Layout):
    """One hart.  The registers come first, so that their displacements are small."""

    x: list[u64] = many(33)  # x[SINK] takes writes to x0
    f: list[u64] = many(32)  # NaN-boxed
    pc: u64
    left: u64  # instructions left of the quantum
    quantum: u64
    alarm: u64  # host address of the mailbox's alarm word
    fetch: u64  # host address of the fetch bank in use
    jumps: u64  # host address of the jump cache in use
    link: u64  # how translated code was left: end of a jump to patch, 1 to look a pc up, 0 to look at the hart
    link_page: u64  # physical page of the jump to patch: only a block of the same one may follow it; 1: a jump forward
    code_flushes: u64  # counts what makes code that is being run old: flushes, fence.i, the cache's emptying
    loop_cells: list[u64] = many(128)  # tag and addend: where the base registers of a loop last led to
    loop_exit: u64  # which of its rare exits a loop was left by
    loop_entry: u64  # which of its entries a loop is entered at
    loop_admitted: u64  # whether this hart may enter a loop of several pages
    stepped: u64  # 1: a step went on to the next instruction
    epoch: u64  # of the last fence.i: pages of code must have been looked at since
    id: u32
    privilege: u32
    waiting: u32  # 1 after wfi, until an interrupt is pending
    stop: u32  # the machine ends
    stopped: u32  # SBI: waits for hart_start
    suspended: u32  # SBI: resumes at the mailbox's start_pc
    paused: u32  # a monitor has stopped the machine
    fflags: u64
    frm: u64
    mxcsr: u32  # the host's while translated code runs: frm's rounding mode, exceptions not in fflags yet
    host_mxcsr: u32  # the host's otherwise
    fp_inline: u32  # bit 1: translated code may do floating point, bit 0: its host registers are loaded
    mstatus: u64
    mie: u64
    soft_pending: u64  # mip bits that software wrote: STIP, SEIP
    timers: u64  # timer bits of mip that some look at the clock found due: a reason to look again, no state
    seen_pending: u64  # mip as the CSR instruction in hand has read it
    mideleg: u64
    medeleg: u64
    mtvec: u64
    mepc: u64
    mcause: u64
    mtval: u64
    mscratch: u64
    mcounteren: u64
    mcountinhibit: u64
    stvec: u64
    sepc: u64
    scause: u64
    stval: u64
    sscratch: u64
    scounteren: u64
    senvcfg: u64
    stimecmp: u64
    instret: u64  # retired in finished quanta
    cycle_offset: u64  # what software added to mcycle and minstret
    instret_offset: u64
    cycle_stopped: u64  # the counter's value while mcountinhibit holds it
    instret_stopped: u64
    reservation: u64
    reserved_pa: u64
    reserved_value: u64
    reserved_sc: u64  # pc of the SC that the constrained sequence ends with
    reserved_lr: u64  # slot of the LR
    straddle_word: u64  # the last instruction that crossed a page
    slot: u64  # decoded slot of the instruction in hand, for those that may prove illegal
    misaligned: u64  # bits that a jump target may not have: 2 without C
    pages_evicted: u64
    log_cause: u64  # last trap, for -d int
    log_tval: u64
    log_pc: u64
    log_new: u32
    step: u32  # 1: one instruction a quantum (-d exec)
    check_failed: u64  # --engine check: the translator did something else than the interpreter
    compared: u64  # --engine check: instructions whose effect was compared
    traps: u64
    interrupts: u64
    ipis: u64
    wfi_ns: u64
    uneven: u64  # a random number, for the length of the next quantum
    wfi_spin: u64  # ns that the next wfi spins before it sleeps
    chain_misses: u64  # blocks looked up because translated code did not know where to go on
    slow_accesses: u64  # loads and stores of translated code that missed the TLB
    slow_steps: u64  # instructions of translated code that the interpreter's handlers executed
    pair: list[u64] = many(2)  # the old value of a quadword compare-and-swap
    tickets: list[u64] = many(MAX_HARTS)  # of the requests under way
    page_ppn: list[u64] = many(DECODED_PAGES)  # physical page held by each decoded page, or NEVER
    # Where code lies: U and S of each address space, and M (`code_bank`)
    fetch_banks: list[FetchBank] = many(CODE_BANKS)
    code_banks: list[CodeBank] = many(CODE_BANKS)  # physical pages of code, for the translator
    codes_used: list[u64] = many(CODE_BANKS)  # whether one of the two has entries
    jumps_used: list[u64] = many(CODE_BANKS)  # how many times something was put into a jump cache, up to JUMP_LOG + 1
    jump_log: list[u32] = many(CODE_BANKS * JUMP_LOG)  # at which places
    jump_pages: list[u64] = many(CODE_BANKS * PAGE_WORDS)  # bits, by page: whether one of its jumps may be in the cache
    jump_banks: list[JumpEntry] = many(CODE_BANKS * JUMP_ENTRIES)
    mmu: Mmu


assert Hart.sizeof() <= HART_STRIDE


def hart_record(number: int) -> Hart:
    """The record of a hart (Python side)."""
    return Hart.at(HARTS + number * HART_STRIDE)
