"""Memory as natives see it: plain and atomic accesses to host addresses, fences, futexes, the clock.

All harts and the I/O process share memory only through these (and through plain accesses to fields that one
process alone writes).  Read-modify-write operations are sequentially consistent; `aload` acquires, `astore`
releases.  The natives at the end give the same operations to Python.
"""

from typing import Any

from llvmlite import ir

from mem.native import call_external, load, native, pointer, store
from mem.word import I64, I128, INT_OF_BYTES, Bool, V, builder, const, macro, raw

SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
FUTEX_WAIT, FUTEX_WAKE = 0, 1
CLOCK_REALTIME, CLOCK_MONOTONIC = 0, 1


def _host() -> str:
    import platform

    return platform.machine()


def _loader(size: int) -> Any:
    @macro
    def load_(address: Any) -> V:
        return load(address, size)

    return load_


def _storer(size: int) -> Any:
    @macro
    def store_(address: Any, value: Any) -> None:
        store(address, value, size)

    return store_


load8, load16, load32, load64 = (_loader(n) for n in (1, 2, 4, 8))
store8, store16, store32, store64 = (_storer(n) for n in (1, 2, 4, 8))


def _narrow(value: Any, size: int) -> ir.Value:
    return raw(value) if size == 8 else builder().trunc(raw(value), INT_OF_BYTES[size])


def _widen(value: ir.Value, size: int) -> V:
    return V(value if size == 8 else builder().zext(value, I64))


def atomic_load(address: Any, size: int, order: str = "acquire") -> V:
    """Emit an atomic load of an aligned cell."""
    kind = INT_OF_BYTES[size]
    return _widen(builder().load_atomic(pointer(address, kind), order, size, typ=kind), size)


def atomic_store(address: Any, value: Any, size: int, order: str = "release") -> None:
    """Emit an atomic store to an aligned cell."""
    kind = INT_OF_BYTES[size]
    builder().store_atomic(_narrow(value, size), pointer(address, kind), order, size)


def atomic_rmw(operation: str, address: Any, value: Any, size: int) -> V:
    """Emit a sequentially consistent read-modify-write (LLVM's names); gives the old value, zero-extended."""
    kind = INT_OF_BYTES[size]
    old = builder().atomic_rmw(operation, pointer(address, kind), _narrow(value, size), "seq_cst")
    return _widen(old, size)


def compare_exchange(address: Any, expected: Any, desired: Any, size: int) -> V:
    """Emit a compare-and-swap; gives the old value (the swap happened when it equals `expected`)."""
    kind = INT_OF_BYTES[size]
    pair = builder().cmpxchg(
        pointer(address, kind), _narrow(expected, size), _narrow(desired, size), "seq_cst", "seq_cst"
    )
    return _widen(builder().extract_value(pair, 0), size)


aload16 = macro(lambda a: atomic_load(a, 2))
aload32 = macro(lambda a: atomic_load(a, 4))
aload64 = macro(lambda a: atomic_load(a, 8))
astore16 = macro(lambda a, v: atomic_store(a, v, 2))
astore32 = macro(lambda a, v: atomic_store(a, v, 4))
astore64 = macro(lambda a, v: atomic_store(a, v, 8))
xchg32 = macro(lambda a, v: atomic_rmw("xchg", a, v, 4))
xchg64 = macro(lambda a, v: atomic_rmw("xchg", a, v, 8))
fetch_add32 = macro(lambda a, v: atomic_rmw("add", a, v, 4))
fetch_add64 = macro(lambda a, v: atomic_rmw("add", a, v, 8))
fetch_or32 = macro(lambda a, v: atomic_rmw("or", a, v, 4))
fetch_or64 = macro(lambda a, v: atomic_rmw("or", a, v, 8))
fetch_and32 = macro(lambda a, v: atomic_rmw("and", a, v, 4))
cas32 = macro(lambda a, e, d: compare_exchange(a, e, d, 4))
cas64 = macro(lambda a, e, d: compare_exchange(a, e, d, 8))


@macro
def cas128(address: Any, expected_lo: Any, expected_hi: Any, lo: Any, hi: Any, result: Any) -> Bool:
    """Emit a 16-byte compare-and-swap; the old value goes to `result` (16 bytes), the truth is whether it swapped."""
    b = builder()

    def join(low: Any, high: Any) -> ir.Value:
        wide = b.shl(b.zext(raw(high), I128), ir.Constant(I128, 64))
        return b.or_(b.zext(raw(low), I128), wide)

    pair = b.cmpxchg(pointer(address, I128), join(expected_lo, expected_hi), join(lo, hi), "seq_cst", "seq_cst")
    old = b.extract_value(pair, 0)
    b.store(old, pointer(result, I128), align=8)
    return Bool(b.extract_value(pair, 1))


@macro
def fence_full() -> None:
    """Emit a fence that orders everything before with everything after (earlier writes with later reads too)."""
    builder().fence("seq_cst")


@macro
def cpu_relax() -> None:
    """Emit the host's spin-wait hint."""
    text = {"x86_64": "pause", "aarch64": "yield"}.get(_host(), "")
    if text:
        builder().asm(ir.FunctionType(ir.VoidType(), []), text, "", [], True)


@macro
def memory_set(address: Any, byte: Any, count: Any) -> None:
    call_external("memset", address, byte, count)


@macro
def memory_copy(to: Any, source: Any, count: Any) -> None:
    call_external("memcpy", to, source, count)


@macro
def memory_compare(a: Any, b: Any, count: Any) -> V:
    """0 when equal (only the lowest 32 bits count).  For memory that nobody else writes: see mem/pages.py."""
    return call_external("memcmp", a, b, count) & 0xFFFFFFFF


@macro
def sched_yield() -> None:
    call_external("sched_yield")


@macro
def write_fd(fd: Any, address: Any, count: Any) -> V:
    """write(2): bytes written; errors are negative 32-bit numbers and mostly of no interest to the caller."""
    return call_external("write", fd, address, count)


def _scratch(words: int) -> ir.Value:
    """Words on the stack, taken in the function's entry block."""
    entry = builder().function.entry_basic_block
    made = ir.IRBuilder(entry)
    if entry.is_terminated:
        made.position_before(entry.terminator)
    return made.alloca(I64, words)


def _clock_ns(clock: int) -> V:
    b = builder()
    spec = _scratch(2)
    address = V(b.ptrtoint(spec, I64))
    call_external("clock_gettime", clock, address)
    return load(address, 8) * 1_000_000_000 + load(address + 8, 8)


@macro
def now_ns() -> V:
    """The host's monotonic clock in nanoseconds."""
    return _clock_ns(CLOCK_MONOTONIC)


@macro
def wall_ns() -> V:
    """The host's wall clock in nanoseconds since 1970."""
    return _clock_ns(CLOCK_REALTIME)


@macro
def futex_wait(address: Any, value: Any, timeout_ns: Any) -> V:
    """Sleep while the u32 holds `value`, until woken or for at most `timeout_ns`."""
    b = builder()
    spec = V(b.ptrtoint(_scratch(2), I64))
    timeout = V(raw(timeout_ns))
    store(spec, V(b.udiv(timeout.v, const(1_000_000_000))), 8)
    store(spec + 8, V(b.urem(timeout.v, const(1_000_000_000))), 8)
    return call_external("syscall", SYS_FUTEX[_host()], address, FUTEX_WAIT, value, spec, 0, 0)


@macro
def futex_wake(address: Any, count: Any) -> V:
    """Wake up to `count` sleepers on the u32."""
    return call_external("syscall", SYS_FUTEX[_host()], address, FUTEX_WAKE, count, 0, 0, 0)


@native
def spin_lock(lock: int) -> None:
    """Take a lock (a u32, 0 when free); gives the core away when the holder does not run."""
    spins = 0
    while xchg32(lock, 1):
        while aload32(lock):
            cpu_relax()
            spins += 1
            if spins & 63 == 0:
                sched_yield()


@native
def spin_unlock(lock: int) -> None:
    """Free a lock: earlier accesses of its holder come before the next holder's."""
    astore32(lock, 0)


# What Python code (the I/O process, tests) uses.


@native
def py_fence() -> None:
    """Order all earlier accesses of this process before all later ones."""
    fence_full()


@native
def py_load32(address: int) -> int:
    return aload32(address)


@native
def py_store32(address: int, value: int) -> None:
    astore32(address, value)


@native
def py_xchg32(address: int, value: int) -> int:
    return xchg32(address, value)


@native
def py_now_ns() -> int:
    return now_ns()
