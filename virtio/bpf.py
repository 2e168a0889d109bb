"""An assembler for seccomp's filters: classic BPF programs over struct seccomp_data (seccomp(2)).

Pure: gives bytes, and knows no process.
"""

import errno
from struct import pack
from typing import NamedTuple

# linux/bpf_common.h: class, size and mode, or operation and source
LOAD_WORD, JUMP_EQUAL, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, KILL, REFUSE = 0x7FFF_0000, 0x8000_0000, 0x0005_0000  # REFUSE has the errno in its low bits
X32 = 0x4000_0000  # of a number: x86-64's other calling convention
FARTHEST = 255  # instructions that a jump can skip


class Check(NamedTuple):
    """Whether an argument's low 32 bits, masked, have a value."""

    argument: int
    mask: int
    value: int


class Assembler:
    """Instructions in order; a jump names a label further down."""

    def __init__(self) -> None:
        self.code: list[tuple[int, str, str, int]] = []
        self.labels: dict[str, int] = {}

    def emit(self, operation: int, value: int, true: str = "", false: str = "") -> None:
        """One instruction; an empty label is the next instruction."""
        self.code.append((operation, true, false, value))

    def label(self, name: str) -> None:
        """The next instruction's name."""
        assert name not in self.labels, name
        self.labels[name] = len(self.code)

    def finish(self) -> bytes:
        """struct sock_filter, one after another."""
        return b"".join(
            pack("<HBBI", operation, self._distance(at, true), self._distance(at, false), value)
            for at, (operation, true, false, value) in enumerate(self.code)
        )

    def _distance(self, at: int, name: str) -> int:
        distance = self.labels[name] - at - 1 if name else 0
        if not 0 <= distance <= FARTHEST:
            raise ValueError(f"a jump over {distance} instructions to {name}")
        return distance


def system_call_filter(architecture: int, rules: dict[int, tuple[Check, ...]], absent: tuple[int, ...] = ()) -> bytes:
    """Allow the calls whose numbers have a rule and, if it has tests, pass one of them.

    All others fail with EPERM, those that are `absent` with ENOSYS, so that the C library does without.  Another
    architecture's calls, which have other numbers, kill the process.
    """
    program = Assembler()
    program.emit(LOAD_WORD, ARCHITECTURE)
    program.emit(JUMP_EQUAL, architecture, "", "kill")
    program.emit(LOAD_WORD, NUMBER)
    program.emit(JUMP_ANY_BIT, X32, "kill", "start")
    program.label("kill")
    program.emit(RETURN, KILL)
    program.label("start")
    for number, tests in rules.items():
        _one_call(program, number, tests)
    for number in absent:
        program.emit(JUMP_EQUAL, number, "", f"not {number}")
        program.emit(RETURN, REFUSE | errno.ENOSYS)
        program.label(f"not {number}")
    program.emit(RETURN, REFUSE | errno.EPERM)
    return program.finish()


def _one_call(program: Assembler, number: int, tests: tuple[Check, ...]) -> None:
    program.emit(JUMP_EQUAL, number, "", f"not {number}")
    for index, test in enumerate(tests):
        program.emit(LOAD_WORD, ARGUMENTS + 8 * test.argument)
        program.emit(AND, test.mask)
        program.emit(JUMP_EQUAL, test.value, f"allow {number}", f"{number} test {index + 1}")
        program.label(f"{number} test {index + 1}")
    if tests:
        program.emit(RETURN, REFUSE | errno.EPERM)
    program.label(f"allow {number}")
    program.emit(RETURN, ALLOW)
    program.label(f"not {number}")
