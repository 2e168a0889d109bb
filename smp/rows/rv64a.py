"""A, Zabha and Zacas: atomics (unprivileged manual, chapters 13 and following).

`old` and `src` of an AMO come sign-extended from the access's size, which keeps the unsigned order as well.
"""

from mem.word import maxs, maxu, mins, minu, sext32
from smp.cpu import EXT_A, EXT_ZABHA, EXT_ZACAS
from smp.row import Kind, row

FUNCT3 = {1: "000", 2: "001", 4: "010", 8: "011", 16: "100"}
LETTER = {1: "b", 2: "h", 4: "w", 8: "d", 16: "q"}
ODD = ",".join(str(n) for n in range(1, 32, 2))


def atomic(
    name: str,
    funct5: str,
    kind: Kind,
    size: int,
    ext: int,
    meaning: object = None,
    rs2: str = "rs2",
    rd: str = "rd",
) -> None:
    syntax = "rd, (rs1)" if kind is Kind.LR else "rd, rs2, (rs1)"
    pattern = f"{funct5} aq rl {rs2} rs1 {FUNCT3[size]} {rd} 0101111"
    row(f"{name}.{LETTER[size]}", pattern, syntax, kind, meaning, ext=ext, size=size)


atomic("lr", "00010", Kind.LR, 4, EXT_A, lambda value: sext32(value), rs2="00000")
atomic("lr", "00010", Kind.LR, 8, EXT_A, lambda value: value, rs2="00000")
for size in (4, 8):
    atomic("sc", "00011", Kind.SC, size, EXT_A)

for size, ext in ((1, EXT_ZABHA), (2, EXT_ZABHA), (4, EXT_A), (8, EXT_A)):
    atomic("amoswap", "00001", Kind.AMO, size, ext, lambda old, src: src)
    atomic("amoadd", "00000", Kind.AMO, size, ext, lambda old, src: old + src)
    atomic("amoxor", "00100", Kind.AMO, size, ext, lambda old, src: old ^ src)
    atomic("amoand", "01100", Kind.AMO, size, ext, lambda old, src: old & src)
    atomic("amoor", "01000", Kind.AMO, size, ext, lambda old, src: old | src)
    atomic("amomin", "10000", Kind.AMO, size, ext, lambda old, src: mins(old, src))
    atomic("amomax", "10100", Kind.AMO, size, ext, lambda old, src: maxs(old, src))
    atomic("amominu", "11000", Kind.AMO, size, ext, lambda old, src: minu(old, src))
    atomic("amomaxu", "11100", Kind.AMO, size, ext, lambda old, src: maxu(old, src))

for size in (1, 2):
    atomic("amocas", "00101", Kind.CAS, size, EXT_ZABHA | EXT_ZACAS)
for size in (4, 8):
    atomic("amocas", "00101", Kind.CAS, size, EXT_ZACAS)
# The quadword is a register pair; odd registers are reserved.
atomic("amocas", "00101", Kind.CAS, 16, EXT_ZACAS, rs2=f"rs2!={ODD}", rd=f"rd!={ODD}")
