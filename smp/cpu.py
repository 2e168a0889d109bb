"""What a hart can be: the table of ISA extensions and the `-cpu` option that chooses among them.

Pure: text in, `CpuConfig` out. `ConfigError` lives here, the lowest module of the command line.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class ConfigError(ValueError):
    """A user's mistake: one line that names the value, the limit and the way out."""


def near(word: str, known: Iterable[str]) -> str:
    """'; did you mean x?' where a known word is close to `word`, else ''."""
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


# Bits of the enable mask. They are part of records that compiled code reads: never renumber, only append.
# A single letter's bit is misa's.
EXT_A = 1 << 0
EXT_C = 1 << 2
EXT_D = 1 << 3
EXT_F = 1 << 5
EXT_I = 1 << 8
EXT_M = 1 << 12
EXT_ZICSR = 1 << 26
EXT_ZIFENCEI = 1 << 27
EXT_ZICNTR = 1 << 28
EXT_ZIHPM = 1 << 29
EXT_ZICOND = 1 << 30
EXT_ZICBOM = 1 << 31
EXT_ZICBOP = 1 << 32
EXT_ZICBOZ = 1 << 33
EXT_ZIHINTPAUSE = 1 << 34
EXT_ZIHINTNTL = 1 << 35
EXT_ZIMOP = 1 << 36
EXT_ZAWRS = 1 << 37
EXT_ZACAS = 1 << 38
EXT_ZABHA = 1 << 39
EXT_ZFA = 1 << 40
EXT_ZFHMIN = 1 << 41
EXT_ZCB = 1 << 42
EXT_ZCMOP = 1 << 43
EXT_ZBA = 1 << 44
EXT_ZBB = 1 << 45
EXT_ZBC = 1 << 46
EXT_ZBS = 1 << 47
EXT_ZBKB = 1 << 48
EXT_SVADE = 1 << 49
EXT_SVADU = 1 << 50
EXT_SVINVAL = 1 << 51
EXT_SVNAPOT = 1 << 52
EXT_SVPBMT = 1 << 53
EXT_SSTC = 1 << 54
EXT_PMP = 1 << 55
EXT_SV48 = 1 << 56
EXT_SV57 = 1 << 57
EXT_ZFH = 1 << 58
EXT_ZBKX = 1 << 59

CACHE_BLOCK = 64  # bytes that cbo.* work on: Zicbom, Zicbop, Zicboz


class Extension(NamedTuple):
    """One row. Without a bit it is only a name for the software: on whenever all of `requires` is on."""

    name: str
    bit: int
    requires: tuple[str, ...]
    about: str
    listed: bool = True  # in riscv,isa and riscv,isa-extensions


# In the order of the ISA string: unprivileged manual, chapter "ISA Extension Naming Conventions".
# fmt: off
EXTENSIONS: tuple[Extension, ...] = (
    Extension("i",           EXT_I,           (),               "base integer instructions (always on)"),
    Extension("m",           EXT_M,           (),               "multiply and divide"),
    Extension("a",           EXT_A,           (),               "atomics: LR/SC and AMO"),
    Extension("f",           EXT_F,           ("zicsr",),       "single-precision floating point"),
    Extension("d",           EXT_D,           ("f",),           "double-precision floating point"),
    Extension("c",           EXT_C,           (),               "compressed instructions"),
    Extension("zicbom",      EXT_ZICBOM,      (),               "cbo.clean, cbo.flush, cbo.inval"),
    Extension("zicbop",      EXT_ZICBOP,      (),               "prefetch hints"),
    Extension("zicboz",      EXT_ZICBOZ,      (),               "cbo.zero"),
    Extension("zicntr",      EXT_ZICNTR,      ("zicsr",),       "cycle, time, instret"),
    Extension("zicond",      EXT_ZICOND,      (),               "czero.eqz, czero.nez"),
    Extension("zicsr",       EXT_ZICSR,       (),               "CSR instructions (always on)"),
    Extension("zifencei",    EXT_ZIFENCEI,    (),               "fence.i"),
    Extension("zihintntl",   EXT_ZIHINTNTL,   (),               "non-temporal locality hints"),
    Extension("zihintpause", EXT_ZIHINTPAUSE, (),               "pause"),
    Extension("zihpm",       EXT_ZIHPM,       ("zicsr",),       "hardware performance counters"),
    Extension("zimop",       EXT_ZIMOP,       (),               "may-be operations"),
    Extension("zaamo",       0,               ("a",),           "AMO, a part of A"),
    Extension("zabha",       EXT_ZABHA,       ("a",),           "AMO on bytes and halfwords"),
    Extension("zacas",       EXT_ZACAS,       ("a",),           "compare-and-swap"),
    Extension("zalrsc",      0,               ("a",),           "LR/SC, a part of A"),
    Extension("zawrs",       EXT_ZAWRS,       ("a",),           "wait on a reservation set"),
    Extension("zfa",         EXT_ZFA,         ("f",),           "additional floating-point instructions"),
    Extension("zfh",         EXT_ZFH,         ("zfhmin",),      "half-precision floating point"),
    Extension("zfhmin",      EXT_ZFHMIN,      ("f",),           "half-precision moves and conversions"),
    Extension("zca",         0,               ("c",),           "C without floating-point loads and stores"),
    Extension("zcb",         EXT_ZCB,         ("c",),           "more compressed instructions"),
    Extension("zcd",         0,               ("c", "d"),       "compressed double loads and stores"),
    Extension("zcmop",       EXT_ZCMOP,       ("c", "zimop"),   "compressed may-be operations"),
    Extension("zba",         EXT_ZBA,         (),               "address generation"),
    Extension("zbb",         EXT_ZBB,         (),               "basic bit manipulation"),
    Extension("zbc",         EXT_ZBC,         (),               "carry-less multiplication"),
    Extension("zbkb",        EXT_ZBKB,        (),               "bit manipulation for cryptography"),
    Extension("zbkx",        EXT_ZBKX,        (),               "crossbar permutations"),
    Extension("zbs",         EXT_ZBS,         (),               "single-bit instructions"),
    Extension("sstc",        EXT_SSTC,        ("zicntr",),      "supervisor timer, stimecmp"),
    Extension("svade",       EXT_SVADE,       (),               "page faults where A or D must be set"),
    Extension("svadu",       EXT_SVADU,       (),               "A and D set by hardware, if menvcfg.ADUE"),
    Extension("svinval",     EXT_SVINVAL,     (),               "fine-grained TLB invalidation"),
    Extension("svnapot",     EXT_SVNAPOT,     (),               "64 KiB pages"),
    Extension("svpbmt",      EXT_SVPBMT,      (),               "page-based memory types"),
    Extension("pmp",         EXT_PMP,         (),               "physical memory protection", False),
    Extension("sv48",        EXT_SV48,        (),               "four-level page tables", False),
    Extension("sv57",        EXT_SV57,        ("sv48",),        "five-level page tables", False),
)
# fmt: on

BY_NAME = {extension.name: extension for extension in EXTENSIONS}
OPTIONAL = tuple(row.name for row in EXTENSIONS if row.bit and row.name not in ("i", "zicsr"))
ABSENT = ("e", "h", "v")  # QEMU has these; turning them off is honoured, for they are never there
MODELS = ("rv64", "max")  # one and the same: every extension of the table

assert len({row.bit for row in EXTENSIONS if row.bit}) == sum(1 for row in EXTENSIONS if row.bit)


@dataclass(frozen=True)
class CpuConfig:
    """A hart's extensions as a mask of `EXT_*` bits; all harts of a machine are alike."""

    mask: int

    def has(self, name: str) -> bool:
        row = BY_NAME[name]
        return self.mask & row.bit != 0 if row.bit else all(self.has(need) for need in row.requires)

    @property
    def mmu(self) -> int:
        """Bits of the largest virtual address: 39, 48 or 57."""
        if self.mask & EXT_SV57:
            return 57
        return 48 if self.mask & EXT_SV48 else 39

    @property
    def misa(self) -> int:
        """MXL = 2 (64 bits), the extensions' letters, and S and U, which are always there."""
        return 2 << 62 | 1 << 18 | 1 << 20 | self.mask & (1 << 26) - 1

    def isa_extensions(self) -> list[str]:
        """Names for riscv,isa-extensions, in the order of the ISA string."""
        return [row.name for row in EXTENSIONS if row.listed and self.has(row.name)]

    def isa_string(self) -> str:
        """riscv,isa: the single letters run together, the long names with underscores."""
        names = self.isa_extensions()
        letters = "".join(name for name in names if len(name) == 1)
        return "_".join([f"rv64{letters}", *(name for name in names if len(name) > 1)])


def parse_cpu(text: str) -> CpuConfig:
    """`rv64,zacas=off,sv57=off` to a `CpuConfig`; `ConfigError` names what is wrong.

    Turning an extension off takes along those that require it, unless they were asked for.
    """
    model, *settings = text.split(",")
    if model not in MODELS:
        raise ConfigError(f"-cpu {model}: no such processor{near(model, MODELS)} (there are {', '.join(MODELS)})")
    chosen: dict[str, bool] = {}
    for setting in settings:
        name, value = _setting(setting)
        chosen[name] = value
    return CpuConfig(_resolve(_limit_mmu(chosen)))


def _limit_mmu(chosen: dict[str, bool]) -> dict[str, bool]:
    """As in QEMU, asking for a mode and not mentioning the next larger one makes it the largest."""
    chosen = dict(chosen)
    if chosen.get("sv48"):
        chosen.setdefault("sv57", False)
    if chosen.pop("sv39", False):
        chosen.setdefault("sv48", False)
    return chosen


def _setting(text: str) -> tuple[str, bool]:
    name, equals, value = text.partition("=")
    if name in ("i", "zicsr", "sv39") and value == "off":
        raise ConfigError(f"-cpu {text}: a hart can't do without {name}")
    if name in ABSENT and value == "on":
        raise ConfigError(f"-cpu {text}: Hartbeat's harts don't have {name}; leave it off")
    if name not in (*BY_NAME, *ABSENT, "sv39") or (name in BY_NAME and not BY_NAME[name].bit):
        raise ConfigError(f"-cpu {text}: no extension {name!r}{near(name, OPTIONAL)} (-cpu help lists them)")
    if not equals or value not in ("on", "off"):
        raise ConfigError(f"-cpu {text}: use {name}=on or {name}=off")
    return name, value == "on"


def _resolve(chosen: dict[str, bool]) -> int:
    """The mask for what was chosen: rows go off until every row that is left has what it requires."""
    on = {row.name: chosen.get(row.name, True) for row in EXTENSIONS if row.bit}
    changed = True
    while changed:
        changed = False
        for row in EXTENSIONS:
            missing = [need for need in row.requires if not on[need]] if row.bit and on[row.name] else []
            if missing and chosen.get(row.name):
                raise ConfigError(f"-cpu {row.name}=on: needs {missing[0]}=on too")
            if missing:
                on[row.name], changed = False, True
    return sum(BY_NAME[name].bit for name, is_on in on.items() if is_on)


def help_text() -> str:
    """What `-cpu help` prints."""
    rows = [f"  {row.name:12} {row.about}" for row in EXTENSIONS if row.bit]
    return "\n".join([f"Processors: {', '.join(MODELS)}. Extensions, all on; NAME=off turns one off:", *rows])
