"""The living definition: one hart that runs unprivileged programs straight from the rows, slow and obviously right.

The interpreter and the translator are compared with it.  It touches nothing but its own registers and memory; what
an operating system would handle comes out as `Trap`, with the state as it was before the instruction.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from mem.word import W, signed
from smp.cpu import CACHE_BLOCK, EXT_C, EXT_F, EXT_ZICNTR
from smp.fpformat import Format
from smp.fpu_definition import DefinitionFpu
from smp.row import Row
from smp.rows import ALL_EXTENSIONS, find

RESERVATION_SET = 8  # bytes
DYNAMIC = 7  # rm: the rounding mode is in frm
LAST_ROUNDING = 4
READ_ONLY = 3  # bits 11:10 of a CSR's number


class Cause(IntEnum):
    """Exceptions (privileged manual, "Machine Cause Register")."""

    FETCH_MISALIGNED = 0
    FETCH_ACCESS = 1
    ILLEGAL = 2
    BREAKPOINT = 3
    LOAD_MISALIGNED = 4
    LOAD_ACCESS = 5
    STORE_MISALIGNED = 6
    STORE_ACCESS = 7
    ECALL_U = 8


class Trap(Exception):
    """The instruction did not complete; `tval` as the manual recommends it (address, word, or 0)."""

    def __init__(self, cause: Cause, tval: int) -> None:
        super().__init__(f"{cause.name.lower()}, tval {tval:#x}")
        self.cause, self.tval = cause, tval


def box(fmt: Format, value: int) -> W:
    """A value of the format as a register holds it: ones above (manual, D, "NaN Boxing")."""
    return W(value | -1 << fmt.bits)


def unbox(fmt: Format | None, register: int) -> W:
    """The value of the format in a register; the canonical NaN if it is not boxed. Without a format, the register."""
    if fmt is None:
        return W(register)
    if int(register) >> fmt.bits != (1 << 64 - fmt.bits) - 1:
        return W(fmt.nan)
    return W(register & (1 << fmt.bits) - 1)


def extend(value: int, size: int) -> W:
    """The lowest `size` bytes, sign-extended."""
    return W(signed(value, 8 * size))


class Definition:
    """A hart in U-mode with `memory` at address `base`."""

    def __init__(self, memory: bytearray, base: int, pc: int | None = None, extensions: int = ALL_EXTENSIONS) -> None:
        self.memory, self.base, self.extensions = memory, base, extensions
        self.pc = base if pc is None else pc
        self.x = [W(0)] * 32
        self.f = [W(0)] * 32
        self.fflags = 0
        self.frm = 0
        self.time = 0
        self.retired = 0  # cycle and instret
        self.reservation: int | None = None  # address of the reservation set
        self.word = 0  # the instruction being executed
        self.next_pc = self.pc
        self._decoded: dict[int, Row | None] = {}

    def step(self) -> Row:
        """Execute one instruction and return its row."""
        row = self._fetch()
        self.next_pc = self.pc + row.bits // 8
        getattr(self, f"_{row.kind.name.lower()}")(row, row.operands(self.word))
        self.pc = int(W(self.next_pc))
        self.retired += 1
        return row

    def run(self, limit: int) -> Trap | None:
        """At most `limit` instructions; the trap that ended them, if one did."""
        try:
            for _ in range(limit):
                self.step()
        except Trap as trap:
            return trap
        return None

    # Fetching and memory

    def _fetch(self) -> Row:
        self.word = self._read(self.pc, 2, Cause.FETCH_ACCESS)
        if self.word & 3 == 3:
            self.word |= self._read(self.pc + 2, 2, Cause.FETCH_ACCESS) << 16
        if self.word not in self._decoded:
            self._decoded[self.word] = find(self.word, self.extensions)
        row = self._decoded[self.word]
        if row is None:
            raise self._illegal()
        return row

    def _illegal(self) -> Trap:
        return Trap(Cause.ILLEGAL, self.word)

    def _offset(self, address: int, size: int, cause: Cause) -> int:
        offset = int(address) - self.base
        if not 0 <= offset <= len(self.memory) - size:
            raise Trap(cause, int(address))
        return offset

    def _read(self, address: int, size: int, cause: Cause) -> int:
        offset = self._offset(address, size, cause)
        return int.from_bytes(self.memory[offset : offset + size], "little")

    def _write(self, address: int, size: int, value: int) -> None:
        offset = self._offset(address, size, Cause.STORE_ACCESS)
        self.memory[offset : offset + size] = (int(value) & (1 << 8 * size) - 1).to_bytes(size, "little")

    def _aligned(self, address: W, size: int, cause: Cause) -> W:
        """Atomics must be aligned."""
        if address % size:
            raise Trap(cause, int(address))
        return address

    # Registers

    def _set_x(self, number: int, value: Any) -> None:
        if number:
            self.x[number] = W(value)

    def _arguments(self, row: Row, o: Mapping[str, int]) -> dict[str, Any]:
        """Values of the operands that an ALU, BRANCH or FP meaning asks for."""
        given: dict[str, Any] = {}
        for name in row.parameters():
            if name == "imm":
                given[name] = W(o["imm"])
            elif name == "pc":
                given[name] = W(self.pc)
            elif name == "fpu":
                given[name] = DefinitionFpu(self._rounding_mode(row, o))
            elif name.startswith("f"):
                given[name] = unbox(row.fmt, self.f[o[name.replace("f", "r", 1)]])
            else:
                given[name] = self.x[o[name]]
        return given

    def _rounding_mode(self, row: Row, o: Mapping[str, int]) -> int:
        """By rm and frm; the modes 5 to 7 are reserved (manual, F, "Floating-Point Control and Status Register")."""
        mode = o.get("rm", 0)
        if mode == DYNAMIC:
            mode = self.frm
        if row.rounds and mode > LAST_ROUNDING:
            raise self._illegal()
        return mode

    # What each kind does

    def _alu(self, row: Row, o: Mapping[str, int]) -> None:
        assert row.meaning
        self._set_x(o["rd"], row.meaning(**self._arguments(row, o)))

    def _load(self, row: Row, o: Mapping[str, int]) -> None:
        assert row.meaning
        value = self._read(self.x[o["rs1"]] + o["imm"], row.size, Cause.LOAD_ACCESS)
        self._set_x(o["rd"], row.meaning(W(value)))

    def _store(self, row: Row, o: Mapping[str, int]) -> None:
        self._write(self.x[o["rs1"]] + o["imm"], row.size, self.x[o["rs2"]])

    def _fload(self, row: Row, o: Mapping[str, int]) -> None:
        assert row.meaning
        value = self._read(self.x[o["rs1"]] + o["imm"], row.size, Cause.LOAD_ACCESS)
        self.f[o["rd"]] = W(row.meaning(W(value)))

    def _fstore(self, row: Row, o: Mapping[str, int]) -> None:
        self._write(self.x[o["rs1"]] + o["imm"], row.size, self.f[o["rs2"]])

    def _jump(self, target: W) -> None:
        if target & 2 and not self.extensions & EXT_C:
            raise Trap(Cause.FETCH_MISALIGNED, int(target))
        self.next_pc = int(target)

    def _branch(self, row: Row, o: Mapping[str, int]) -> None:
        assert row.meaning
        if row.meaning(**self._arguments(row, o)):
            self._jump(W(self.pc + o["imm"]))

    def _jal(self, row: Row, o: Mapping[str, int]) -> None:
        link = self.next_pc
        self._jump(W(self.pc + o["imm"]))
        self._set_x(o["rd"], link)

    def _jalr(self, row: Row, o: Mapping[str, int]) -> None:
        link = self.next_pc
        self._jump(self.x[o["rs1"]] + o["imm"] & ~1)
        self._set_x(o["rd"], link)

    def _amo(self, row: Row, o: Mapping[str, int]) -> None:
        assert row.meaning
        address = self._aligned(self.x[o["rs1"]], row.size, Cause.STORE_MISALIGNED)
        old = extend(self._read(address, row.size, Cause.STORE_ACCESS), row.size)
        self._write(address, row.size, row.meaning(old, extend(self.x[o["rs2"]], row.size)))
        self._set_x(o["rd"], old)

    def _lr(self, row: Row, o: Mapping[str, int]) -> None:
        address = self._aligned(self.x[o["rs1"]], row.size, Cause.LOAD_MISALIGNED)
        value = self._read(address, row.size, Cause.LOAD_ACCESS)
        self.reservation = int(address) // RESERVATION_SET
        self._set_x(o["rd"], extend(value, row.size))

    def _sc(self, row: Row, o: Mapping[str, int]) -> None:
        address = self._aligned(self.x[o["rs1"]], row.size, Cause.STORE_MISALIGNED)
        self._offset(address, row.size, Cause.STORE_ACCESS)
        held = self.reservation == int(address) // RESERVATION_SET
        self.reservation = None
        if held:
            self._write(address, row.size, self.x[o["rs2"]])
        self._set_x(o["rd"], 0 if held else 1)

    def _pair(self, number: int, size: int) -> int:
        """`size` bytes of a register, or of a register pair, which x0 makes 0 (manual, Zacas)."""
        if size <= 8:
            return int(self.x[number]) & (1 << 8 * size) - 1
        return int(self.x[number]) | int(self.x[number + 1]) << 64 if number else 0

    def _cas(self, row: Row, o: Mapping[str, int]) -> None:
        address = self._aligned(self.x[o["rs1"]], row.size, Cause.STORE_MISALIGNED)
        old = self._read(address, row.size, Cause.STORE_ACCESS)
        if old == self._pair(o["rd"], row.size):
            self._write(address, row.size, self._pair(o["rs2"], row.size))
        self._set_x(o["rd"], extend(old, row.size))
        if row.size == 16 and o["rd"]:
            self._set_x(o["rd"] + 1, old >> 64)

    def _fp(self, row: Row, o: Mapping[str, int]) -> None:
        assert row.meaning
        self._rounding_mode(row, o)  # a reserved one is illegal whether it would matter or not
        arguments = self._arguments(row, o)
        result = row.meaning(**arguments)
        if "fpu" in arguments:
            self.fflags |= arguments["fpu"].flags
        if row.to is None:
            self._set_x(o["rd"], result)
        else:
            self.f[o["rd"]] = box(row.to, result)

    # Control and status registers

    def _csr(self, row: Row, o: Mapping[str, int]) -> None:
        self._exchange(row, o, self.x[o["rs1"]])

    def _csri(self, row: Row, o: Mapping[str, int]) -> None:
        self._exchange(row, o, W(o["rs1"]))

    def _exchange(self, row: Row, o: Mapping[str, int], src: W) -> None:
        """Setting or clearing with x0 or 0 writes nothing, swapping always writes (manual, Zicsr)."""
        assert row.meaning
        number = o["csr"]
        writes = o["rs1"] != 0 or row.name.startswith("csrrw")
        if writes and number >> 10 == READ_ONLY:
            raise self._illegal()
        old = self._read_csr(number)
        if writes:
            self._write_csr(number, int(row.meaning(old, src)))
        self._set_x(o["rd"], old)

    def _read_csr(self, number: int) -> W:
        floating = {1: self.fflags, 2: self.frm, 3: self.frm << 5 | self.fflags}
        counters = {0xC00: self.retired, 0xC01: self.time, 0xC02: self.retired}
        if number in floating and self.extensions & EXT_F:
            return W(floating[number])
        if number in counters and self.extensions & EXT_ZICNTR:
            return W(counters[number])
        raise self._illegal()

    def _write_csr(self, number: int, value: int) -> None:
        if number in (1, 3):
            self.fflags = value & 31
        if number in (2, 3):
            self.frm = (value >> 5 if number == 3 else value) & 7

    # What only its name tells

    def _system(self, row: Row, o: Mapping[str, int]) -> None:
        if row.name in ("fence", "fence.i", "pause", "wrs.nto", "wrs.sto"):
            return  # one hart sees its own accesses in order
        if row.name.startswith("cbo."):
            self._cache_block(row.name, self.x[o["rs1"]])
        elif row.name in ("ebreak", "c.ebreak"):
            raise Trap(Cause.BREAKPOINT, self.pc)
        elif row.name == "ecall":
            raise Trap(Cause.ECALL_U, 0)
        else:
            raise self._illegal()  # the privileged rows

    def _cache_block(self, name: str, address: W) -> None:
        """As where the environment allows all of them; only zeroing shows. Faults are those of a store."""
        try:
            start = self._offset(address & -CACHE_BLOCK, CACHE_BLOCK, Cause.STORE_ACCESS)
        except Trap as trap:
            raise Trap(trap.cause, int(address)) from None
        if name == "cbo.zero":
            self.memory[start : start + CACHE_BLOCK] = bytes(CACHE_BLOCK)
