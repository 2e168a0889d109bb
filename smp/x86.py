"""x86-64 instructions, emitted at the translator's cursor.

Each emitter is one instruction form of the Intel manual (volume 2); guest registers appear as its register-or-
memory operand, wherever they live: the busiest in a host register, the others in the hart record.
"""

from mem.atomics import store8, store32, store64
from mem.native import native, table
from mem.regions import CODE_ALIAS, CODE_TABLE
from smp.codecache import CodeTable
from smp.hart import Hart

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)
HART, LEFT = R15, R14  # the hart record; instructions left of the quantum
IN_MEMORY = 255

# Guest registers that live in host registers: what compilers use most.
PINNED = {2: RBX, 8: RBP, 9: R10, 10: RSI, 11: RDI, 12: R8, 13: R9, 14: R12, 15: R13, 16: R11}
# In what order LLVM's calling convention ghccc passes words; r10 and r11 are not among them.
GHC_ARGUMENTS = (R13, RBP, R12, RBX, R14, RSI, RDI, R8, R9, R15)
PIN = table("u8", [PINNED.get(g, IN_MEMORY) for g in range(64)])

# Condition codes, as in Jcc and SETcc.
OVERFLOW, BELOW, NOT_BELOW, EQUAL, NOT_EQUAL, ABOVE, SIGN, PARITY, NOT_PARITY, LESS, NOT_LESS = (
    0, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13
)  # fmt: skip
X_OFFSET = Hart.offset("x")
assert X_OFFSET == 0


@native(inline=True)
def here() -> int:
    """Executable address of the next byte."""
    return CodeTable.at(CODE_TABLE).asm.out


@native(inline=True)
def byte(value: int) -> None:
    asm = CodeTable.at(CODE_TABLE).asm
    store8(asm.out + CODE_ALIAS, value)
    asm.out += 1


@native(inline=True)
def word32(value: int) -> None:
    asm = CodeTable.at(CODE_TABLE).asm
    store32(asm.out + CODE_ALIAS, value)
    asm.out += 4


@native(inline=True)
def word64(value: int) -> None:
    asm = CodeTable.at(CODE_TABLE).asm
    store64(asm.out + CODE_ALIAS, value)
    asm.out += 8


@native
def prefixes(wide: int, opcode: int, reg: int, base: int) -> None:
    """Mandatory prefix (bits 16 to 23 of `opcode`), REX, and the opcode's bytes (0x0Fxx has two)."""
    if opcode >> 16:
        byte(opcode >> 16)
    rex = 0x40 | wide << 3 | (reg >> 3) << 2 | base >> 3
    if rex != 0x40:
        byte(rex)
    if (opcode >> 8) & 0xFF:
        byte(0x0F)
    byte(opcode)


@native
def op_reg(wide: int, opcode: int, reg: int, rm: int) -> None:
    """An instruction on two host registers (or an opcode extension and one)."""
    prefixes(wide, opcode, reg, rm)
    byte(0xC0 | (reg & 7) << 3 | rm & 7)


@native
def based(reg: int, base: int, displacement: int) -> None:
    """ModRM and displacement of [base + displacement]."""
    short = displacement + 128 < 256
    byte((0x40 if short else 0x80) | (reg & 7) << 3 | base & 7)
    if base & 7 == RSP:  # rsp and r12 are written with a SIB byte
        byte(0x24)
    if short:
        byte(displacement)
    else:
        word32(displacement)


@native
def op_mem(wide: int, opcode: int, reg: int, base: int, displacement: int) -> None:
    """An instruction on a host register and [base + displacement]."""
    prefixes(wide, opcode, reg, base)
    based(reg, base, displacement)


@native
def op_guest(wide: int, opcode: int, reg: int, guest: int) -> None:
    """An instruction whose register-or-memory operand is a guest register."""
    host = PIN[guest]
    if host == IN_MEMORY:
        op_mem(wide, opcode, reg, HART, guest * 8)
    else:
        op_reg(wide, opcode, reg, host)


@native
def use_guest(wide: int, opcode: int, reg: int, guest: int, spare: int) -> None:
    """An instruction that reads a guest register; one in memory is first loaded into `spare`.

    AMD's cores rename plain loads from where a register was just stored, in no time; as an operand of another
    instruction the same load waits for the store: 9 cycles instead of 1 in a loop.
    """
    host = PIN[guest]
    if host == IN_MEMORY:
        op_mem(1, 0x8B, spare, HART, guest * 8)
        host = spare
    op_reg(wide, opcode, reg, host)


@native
def get(host: int, guest: int) -> None:
    """mov host, guest; x0 is zero."""
    if guest == 0:
        op_reg(0, 0x33, host, host)
    elif PIN[guest] != host:
        op_guest(1, 0x8B, host, guest)


@native
def put(guest: int, host: int) -> None:
    """mov guest, host."""
    if PIN[guest] != host:
        op_guest(1, 0x89, host, guest)


@native
def load_constant(host: int, value: int) -> None:
    """mov host, value in the shortest form."""
    if value == 0:
        op_reg(0, 0x33, host, host)
    elif value >> 32 == 0:
        if host >> 3:
            byte(0x41)
        byte(0xB8 | host & 7)
        word32(value)
    elif value + (1 << 31) < 1 << 32:
        op_reg(1, 0xC7, 0, host)
        word32(value)
    else:
        byte(0x48 | host >> 3)
        byte(0xB8 | host & 7)
        word64(value)


@native
def immediate(wide: int, digit: int, host: int, value: int) -> None:
    """add, or, and, sub, xor, cmp host, value: the group of opcodes 81 and 83, chosen by `digit`."""
    if value + 128 < 256:
        op_reg(wide, 0x83, digit, host)
        byte(value)
    else:
        op_reg(wide, 0x81, digit, host)
        word32(value)


@native
def shift_immediate(wide: int, digit: int, host: int, count: int) -> None:
    """shl (4), shr (5), sar (7) host, count."""
    op_reg(wide, 0xC1, digit, host)
    byte(count)


@native
def rotated(host: int, source: int, count: int) -> None:
    """rorx host, source, count: 32 bits, BMI2."""
    byte(0xC4)
    byte((host >> 3 ^ 1) << 7 | 1 << 6 | (source >> 3 ^ 1) << 5 | 3)
    byte(0x7B)
    byte(0xF0)
    byte(0xC0 | (host & 7) << 3 | source & 7)
    byte(count)


@native
def shift_by(wide: int, prefix: int, host: int, source: int, count: int) -> None:
    """shlx (prefix 1), sarx (2), shrx (3) host, source, count: BMI2."""
    byte(0xC4)
    byte((host >> 3 ^ 1) << 7 | 1 << 6 | (source >> 3 ^ 1) << 5 | 2)
    byte(wide << 7 | (count ^ 15) << 3 | prefix)
    byte(0xF7)
    byte(0xC0 | (host & 7) << 3 | source & 7)


@native
def indexed(wide: int, opcode: int, reg: int, base: int, index: int, scale: int) -> None:
    """An instruction on a register and [base + index * 2**scale]; the base is not rbp or r13, the index not rsp."""
    if opcode >> 16:
        byte(opcode >> 16)
    byte(0x40 | wide << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3)
    if (opcode >> 8) & 0xFF:
        byte(0x0F)
    byte(opcode)
    byte((reg & 7) << 3 | 4)
    byte(scale << 6 | (index & 7) << 3 | base & 7)


@native
def jump_if(condition: int) -> int:
    """jcc rel32, not aimed yet; gives the end of its displacement."""
    byte(0x0F)
    byte(0x80 | condition)
    word32(0)
    return here()


@native
def jump() -> int:
    """jmp rel32, not aimed yet; gives the end of its displacement."""
    byte(0xE9)
    word32(0)
    return here()


@native
def aim(site: int, target: int) -> None:
    """Make the jump that ends at `site` go to `target`.

    One store inside 16 aligned bytes: another hart may be executing the jump and sees the old displacement or the new.
    """
    store32(site - 4 + CODE_ALIAS, target - site)


@native
def jump_to(target: int) -> None:
    aim(jump(), target)


@native
def call_to(target: int) -> None:
    """call target."""
    byte(0xE8)
    word32(0)
    aim(here(), target)


@native
def align_jump(opcode_bytes: int) -> None:
    """Pad so that the displacement of the jump emitted next lies within 16 aligned bytes: `aim` is one access then."""
    left = 16 - ((here() + opcode_bytes) & 15)
    match left:
        case 1:
            byte(0x90)
        case 2:
            byte(0x66)
            byte(0x90)
        case 3:
            byte(0x0F)
            byte(0x1F)
            byte(0)
