"""Control and status registers: what each keeps of a write, who may access it, counters, and interrupt masks."""

import random
from collections.abc import Callable

import pytest
from bare import RAM_BASE, Bare, i

from mem import regions
from mem.clint import Clint
from mem.machine import machine
from mem.mailbox import Mailbox
from mem.word import MASK64
from smp.cpu import parse_cpu
from smp.csr import CSRS, csr_read, csr_write
from smp.hart import FS, MACHINE, SUPERVISOR, TVM, USER

X, VALUE = 5, 6
BREAKPOINT, ILLEGAL = 3, 2
NUMBER = {row.name: number for number, row in CSRS.items()}
SSIP, MSIP, STIP, MTIP, SEIP, MEIP = (1 << n for n in (1, 3, 5, 7, 9, 11))
STCE, ADUE, PBMTE = 1 << 63, 1 << 61, 1 << 62


@pytest.fixture(autouse=True)
def fresh(bare: Bare) -> None:
    bare.reset()


def read(bare: Bare, name: str) -> int:
    return csr_read(bare.h, NUMBER[name])


def write(bare: Bare, name: str, value: int) -> None:
    csr_read(bare.h, NUMBER[name])  # as every CSR instruction does
    csr_write(bare.h, NUMBER[name], value & MASK64)


def keeps(mask: int, always: int = 0) -> Callable[[int, int], int]:
    """A register whose bits of the mask are writable and whose others have fixed values."""
    return lambda old, new: new & mask | always


def mstatus(old: int, new: int) -> int:
    """SIE MIE SPIE MPIE SPP MPP FS MPRV SUM MXR TVM TW TSR; UXL, SXL 2; SD sums up; MPP can't be 2."""
    mpp = old >> 11 & 3 if new >> 11 & 3 == 2 else new >> 11 & 3
    value = new & 0x7E_61AA | mpp << 11 | 0xA_0000_0000
    return value | (1 << 63 if value >> 13 & 3 == 3 else 0)


def sstatus(old: int, new: int) -> int:
    value = new & 0xC_6122 | 2 << 32
    return value | (1 << 63 if value >> 13 & 3 == 3 else 0)


def envcfg(extra: int) -> Callable[[int, int], int]:
    """CBIE can't be 2."""

    def legal(old: int, new: int) -> int:
        cbie = old >> 4 & 3 if new >> 4 & 3 == 2 else new >> 4 & 3
        return new & (0xC1 | extra) | cbie << 4

    return legal


def satp(old: int, new: int) -> int:
    mode = new >> 60
    if mode not in (0, 8, 9, 10):
        return old
    return new if mode else 0


def pmpcfg(old: int, new: int) -> int:
    """Byte by byte: locked ones stay, W without R is refused, bits 5 and 6 are 0."""
    made = 0
    for at in range(0, 64, 8):
        before, wanted = old >> at & 0xFF, new >> at & 0x9F
        made |= (before if before & 0x80 or wanted & 3 == 2 else wanted) << at
    return made


LEGAL: dict[str, Callable[[int, int], int]] = {
    "fflags": keeps(31),
    "frm": keeps(7),
    "fcsr": keeps(255),
    "mstatus": mstatus,
    "sstatus": sstatus,
    "misa": keeps(0, 2 << 62 | sum(1 << ord(letter) - ord("a") for letter in "acdfimsu")),
    "mie": keeps(0xAAA),
    "mideleg": keeps(0x222),
    "medeleg": keeps(0xB3FF),
    "mcounteren": keeps(0xFFFF_FFFF),
    "scounteren": keeps(0xFFFF_FFFF),
    "mcountinhibit": keeps(5),
    "stimecmp": keeps(MASK64),
    "mtvec": keeps(MASK64 & ~2),
    "stvec": keeps(MASK64 & ~2),
    "mepc": keeps(MASK64 & ~1),
    "sepc": keeps(MASK64 & ~1),
    "menvcfg": envcfg(STCE | ADUE | PBMTE),
    "senvcfg": envcfg(0),
    "satp": satp,
    "pmpcfg0": pmpcfg,
    "pmpcfg2": pmpcfg,
    **{f"pmpaddr{n}": keeps((1 << 54) - 1) for n in range(16)},
    **{name: keeps(MASK64) for name in ("mscratch", "sscratch", "mcause", "scause", "mtval", "stval")},
    **{f"{name}{n}": keeps(0) for name in ("mhpmcounter", "mhpmevent") for n in range(3, 32)},
    **{name: keeps(0) for name in ("tselect", "tdata1", "tdata2", "tdata3")},
}
READ_ONLY = {name for name, number in NUMBER.items() if number >> 10 == 3}
ELSEWHERE = {"mip", "sip", "sie", "mcycle", "minstret"}  # below, each by itself


def test_every_register_is_tested() -> None:
    assert set(LEGAL) | READ_ONLY | ELSEWHERE == set(NUMBER)


@pytest.mark.parametrize("name", LEGAL)
def test_a_register_keeps_what_is_legal(bare: Bare, name: str) -> None:
    source = random.Random(name)
    values = [MASK64, 0, *(1 << n for n in range(64)), *(source.getrandbits(64) for _ in range(100))]
    for value in values:
        if name.startswith("pmpcfg"):
            value &= 0x7F7F_7F7F_7F7F_7F7F  # locking has its own test
        old = read(bare, name)
        write(bare, name, value)
        assert read(bare, name) == LEGAL[name](old, value), f"{value:#x} over {old:#x}"


@pytest.mark.parametrize(("cpu", "name", "bits"), [
    ("f", "mstatus", FS), ("svadu", "menvcfg", ADUE), ("svpbmt", "menvcfg", PBMTE), ("sstc", "menvcfg", STCE),
    ("c", "misa", 1 << 2), ("c", "mepc", 2), ("c", "sepc", 2), ("m", "misa", 1 << 12), ("d", "misa", 1 << 3),
])  # fmt: skip
def test_bits_of_an_extension_that_is_off_are_0(bare: Bare, cpu: str, name: str, bits: int) -> None:
    write(bare, name, MASK64)
    assert read(bare, name) & bits == bits
    bare.reset()
    machine().extensions = parse_cpu(f"rv64,{cpu}=off").mask
    bare.h.mmu.menvcfg = 0  # what a hart without Svadu leaves reset with
    write(bare, name, MASK64)
    assert read(bare, name) & bits == 0


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_satp_takes_the_modes_that_there_are(bare: Bare, levels: int) -> None:
    machine().mmu_levels = levels
    for mode in range(16):
        write(bare, "satp", 8 << 60 | 0x1234)
        write(bare, "satp", mode << 60 | 0x5678)
        expected = 0 if mode == 0 else mode << 60 | 0x5678 if 8 <= mode <= levels + 5 else 8 << 60 | 0x1234
        assert read(bare, "satp") == expected


def test_locked_pmp_entries_stay(bare: Bare) -> None:
    write(bare, "pmpcfg0", 0)
    for n in range(3):
        write(bare, f"pmpaddr{n}", 0x2000_0000 + n)
    write(bare, "pmpcfg0", 0x00_8F_00)  # entry 1: TOR, locked; its base is entry 0's address
    write(bare, "pmpcfg0", 0x1F_1F_1F)
    assert read(bare, "pmpcfg0") == 0x1F_8F_1F
    for n in range(3):
        write(bare, f"pmpaddr{n}", 0)
    assert [read(bare, f"pmpaddr{n}") for n in range(3)] == [0x2000_0000, 0x2000_0001, 0]
    write(bare, "pmpcfg2", 0x88)  # entry 8: TOR, locked: entry 7 in the other register is its base
    write(bare, "pmpaddr7", 5)
    assert read(bare, "pmpaddr7") == 0


def test_odd_pmpcfg_registers_do_not_exist_in_64_bits(bare: Bare) -> None:
    for number in (0x3A1, 0x3A3, 0x3A4, 0x3C0):
        assert bare.run_here(i("csrrs", rd=X, csr=number)).cause == ILLEGAL


# Access


def access(bare: Bare, name: str, number: int, privilege: int, value: int = 0) -> int:
    """The cause that ends a CSR instruction in this mode."""
    bare.enter(privilege)
    bare.h.x[VALUE] = value
    trapped = bare.run_here(i(name, rd=X, rs1=VALUE if name == "csrrw" else 0, csr=number))
    if trapped.cause == ILLEGAL:
        assert trapped.tval == bare.word(RAM_BASE, 4)
    return trapped.cause


@pytest.mark.parametrize("number", CSRS)
def test_the_number_says_who_may_access(bare: Bare, number: int) -> None:
    lowest = number >> 8 & 3
    for privilege in (USER, SUPERVISOR, MACHINE):
        bare.reset()
        bare.h.mcounteren = bare.h.scounteren = 0xFFFF_FFFF
        bare.h.mmu.menvcfg = STCE
        expected = BREAKPOINT if privilege >= lowest else ILLEGAL
        assert access(bare, "csrrs", number, privilege) == expected
    bare.reset()
    keep = csr_read(bare.h, number)
    writable = BREAKPOINT if number >> 10 != 3 else ILLEGAL
    assert access(bare, "csrrw", number, MACHINE, keep) == writable


def test_all_other_numbers_are_illegal(bare: Bare) -> None:
    source = random.Random(0)
    others = [number for number in range(4096) if number not in CSRS]
    for number in source.sample(others, 200):
        bare.reset()
        assert access(bare, "csrrs", number, MACHINE) == ILLEGAL


@pytest.mark.parametrize("name", ["cycle", "time", "instret", "hpmcounter3", "hpmcounter31"])
def test_counters_are_enabled_level_by_level(bare: Bare, name: str) -> None:
    bit = 1 << (NUMBER[name] & 31)
    for machine_on in (0, bit):
        for supervisor_on in (0, bit):
            for privilege in (USER, SUPERVISOR, MACHINE):
                bare.reset()
                bare.h.mcounteren, bare.h.scounteren = MASK64 >> 32 & ~bit | machine_on, ~bit & 0xFFFFFFFF
                bare.h.scounteren |= supervisor_on
                allowed = privilege == MACHINE or (machine_on and (privilege == SUPERVISOR or supervisor_on))
                assert access(bare, "csrrs", NUMBER[name], privilege) == (BREAKPOINT if allowed else ILLEGAL)


def test_tvm_keeps_s_mode_from_satp_alone(bare: Bare) -> None:
    bare.h.mstatus |= TVM
    assert access(bare, "csrrs", NUMBER["satp"], SUPERVISOR) == ILLEGAL
    bare.reset()
    bare.h.mstatus |= TVM
    assert access(bare, "csrrs", NUMBER["satp"], MACHINE) == BREAKPOINT


@pytest.mark.parametrize(("stce", "tm", "allowed"), [(0, 0, False), (STCE, 0, False), (0, 2, False), (STCE, 2, True)])
def test_stimecmp_from_s_mode(bare: Bare, stce: int, tm: int, allowed: bool) -> None:
    bare.h.mmu.menvcfg, bare.h.mcounteren = stce, tm
    assert access(bare, "csrrs", NUMBER["stimecmp"], SUPERVISOR) == (BREAKPOINT if allowed else ILLEGAL)


def test_floating_point_registers_need_fs(bare: Bare) -> None:
    for name in ("fflags", "frm", "fcsr"):
        bare.reset()
        bare.h.mstatus &= ~FS
        assert access(bare, "csrrs", NUMBER[name], MACHINE) == ILLEGAL
    bare.reset()
    bare.h.mstatus = 1 << 13
    access(bare, "csrrw", NUMBER["fflags"], MACHINE, 3)
    assert bare.h.mstatus & FS == FS and bare.h.fflags == 3


def test_setting_and_clearing_nothing_writes_nothing(bare: Bare) -> None:
    """So that read-only registers can be read with csrrs and csrrc; csrrsi with 0 too."""
    for name in ("csrrs", "csrrc", "csrrsi", "csrrci"):
        assert bare.run_here(i(name, rd=X, rs1=0, csr=NUMBER["mhartid"])).cause == BREAKPOINT
        assert bare.run_here(i(name, rd=X, rs1=1, csr=NUMBER["mhartid"])).cause == ILLEGAL
    bare.h.x[VALUE] = 0
    assert bare.run_here(i("csrrs", rd=X, rs1=VALUE, csr=NUMBER["mhartid"])).cause == ILLEGAL


def test_set_clear_and_swap(bare: Bare) -> None:
    h = bare.h
    h.mscratch, h.x[VALUE] = 0b1100, 0b1010
    for name, result in (("csrrs", 0b1110), ("csrrc", 0b0100), ("csrrw", 0b1010)):
        bare.run_here(i(name, rd=X, rs1=VALUE, csr=NUMBER["mscratch"]))
        assert h.mscratch == result
    for name, result in (("csrrsi", 0b11010), ("csrrci", 0b01010), ("csrrwi", 0b10000)):
        bare.run_here(i(name, rd=X, rs1=16, csr=NUMBER["mscratch"]))
        assert h.mscratch == result
    h.x[VALUE] = 77
    bare.run_here(i("csrrw", rd=VALUE, rs1=VALUE, csr=NUMBER["mscratch"]))
    assert (h.x[VALUE], h.mscratch) == (16, 77)


# Counters


def test_counters_count_instructions(bare: Bare) -> None:
    bare.run_here(i("csrrs", rd=7, csr=0xC02), i("addi"), i("addi"), i("csrrs", rd=8, csr=0xC02))
    assert bare.h.x[8] - bare.h.x[7] == 3


@pytest.mark.parametrize("name", ["mcycle", "minstret"])
def test_a_written_counter_goes_on_from_there(bare: Bare, name: str) -> None:
    number = NUMBER[name]
    bare.h.x[VALUE] = 1000
    bare.run_here(i("csrrw", rs1=VALUE, csr=number), i("csrrs", rd=7, csr=number), i("addi"),
                  i("csrrs", rd=8, csr=number))  # fmt: skip
    assert (bare.h.x[7], bare.h.x[8]) == (1000, 1002)


@pytest.mark.parametrize(("name", "bit"), [("mcycle", 1), ("minstret", 4)])
def test_an_inhibited_counter_stands(bare: Bare, name: str, bit: int) -> None:
    number = NUMBER[name]
    to_7, to_8, to_9 = (i("csrrs", rd=rd, csr=number) for rd in (7, 8, 9))
    stop, go = i("csrrwi", rs1=bit, csr=0x320), i("csrrwi", rs1=0, csr=0x320)
    bare.run_here(stop, to_7, i("addi"), to_8, go, i("addi"), to_9)
    assert bare.h.x[7] == bare.h.x[8] and 1 <= bare.h.x[9] - bare.h.x[8] <= 2


# Interrupts


def box() -> Mailbox:
    return Mailbox.at(regions.MAILBOXES)


def test_mip_takes_the_supervisors_bits(bare: Bare) -> None:
    write(bare, "mip", MASK64)
    assert read(bare, "mip") == SSIP | STIP | SEIP
    write(bare, "mip", 0)
    assert read(bare, "mip") == 0


def test_lines_from_outside_are_read_only(bare: Bare) -> None:
    box().pending = MSIP | MEIP | SEIP
    Clint.at(regions.CLINT).mtimecmp[0] = 0
    write(bare, "mip", 0)
    assert read(bare, "mip") == MSIP | MEIP | SEIP | MTIP


def test_stip_belongs_to_stimecmp_when_it_is_on(bare: Bare) -> None:
    write(bare, "mip", STIP)
    bare.h.mmu.menvcfg = STCE
    assert read(bare, "mip") == 0
    bare.h.stimecmp = 0
    write(bare, "mip", 0)
    assert read(bare, "mip") == STIP


def test_setting_bits_of_mip_does_not_take_the_line_for_softwares_bit(bare: Bare) -> None:
    """csrrs of mip reads SEIP as the line or software's bit, but writes back only software's."""
    box().pending, bare.h.x[VALUE] = SEIP, SSIP
    bare.run_here(i("csrrs", rd=X, rs1=VALUE, csr=NUMBER["mip"]))
    assert bare.h.x[X] == SEIP
    box().pending &= ~SEIP
    assert read(bare, "mip") == SSIP


@pytest.mark.parametrize(("name", "change"), [("mip", STIP), ("mip", 0), ("sip", 0)])
def test_an_ipi_between_read_and_write_is_not_lost(bare: Bare, name: str, change: int) -> None:
    """csrrs and csrrc of another bit write SSIP back as they read it: another hart may have set it meanwhile."""
    write(bare, "mideleg", SSIP)
    old = read(bare, name)
    box().pending |= SSIP
    csr_write(bare.h, NUMBER[name], old | change)
    assert read(bare, "mip") & SSIP
    write(bare, name, 0)
    assert not read(bare, "mip") & SSIP


@pytest.mark.parametrize("delegated", [0, SSIP, STIP, SEIP, SSIP | SEIP, SSIP | STIP | SEIP])
def test_sie_and_sip_show_what_is_delegated(bare: Bare, delegated: int) -> None:
    write(bare, "mideleg", delegated)
    write(bare, "mie", MASK64)
    write(bare, "mip", MASK64)
    assert read(bare, "sie") == delegated and read(bare, "sip") == delegated
    write(bare, "sie", 0)
    assert read(bare, "mie") == 0xAAA & ~delegated
    write(bare, "mie", 0)
    write(bare, "sie", MASK64)
    assert read(bare, "mie") == delegated
    write(bare, "sip", 0)  # of these S-mode may clear SSIP alone
    assert read(bare, "mip") == (SSIP | STIP | SEIP) & ~(delegated & SSIP)
    write(bare, "mip", 0)
    write(bare, "sip", MASK64)
    assert read(bare, "mip") == delegated & SSIP
