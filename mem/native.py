"""A small language of 64-bit words, written as Python functions and compiled by LLVM.

    @native
    def claim(plic: Plic, context: int) -> int:
        best = 0
        for source in range(1, SOURCES):
            if plic.pending[source] and plic.priority[source] > best: ...
        return best

What holds:
- Every value is an unsigned 64-bit word; + - * << wrap, >> is logical, comparisons are unsigned.  Signed
  operations, divisions and bit counts are the primitives of mem/word.py.  `//` and `%` take a constant divisor.
- A parameter (or local assigned from `Class.at(address)`) whose annotation is a layout is a pointer to the record:
  `r.field`, `r.list[i]`, `r.inner.field` load and store; `ref(r.field)` is the host address.
- Statements: assignment, augmented assignment, if, while, for over range(), match on integer constants, return,
  break, continue, pass, expression.  `and`, `or`, `not`, `a if c else b`, chained comparisons,
  `a in (x, y)`.
- Globals that are integers (enum members too), tables (`table("u8", values)`), other natives and macros.
- Memory: load8..load64, store8..store64 (plain); aload32/64, astore32/64 and the atomics of mem/atomics.py.

Called from Python, a native runs its compiled code (after mem/engine's `load`).  Anything outside the language
is an error with file and line when the unit is built.
"""

import ctypes
import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from llvmlite import ir

from mem import layout as lay
from mem.word import I8, I64, INT_OF_BYTES, V, builder, const, emitting, raw


class NativeError(Exception):
    """A function that is not of the language; the text names file and line."""


class Native:
    """A function of the language: compiled as part of a unit, called from Python through its address."""

    registry: ClassVar[list["Native"]] = []

    def __init__(self, function: Callable[..., Any], inline: bool, cold: bool) -> None:
        self.function, self.inline, self.cold = function, inline, cold
        self.name = f"{function.__module__}.{function.__qualname__}".replace(".", "_")
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.address = 0  # where the compiled code is; 0: not yet
        Native.registry.append(self)

    def parameters(self) -> dict[str, Any]:
        """Parameter names and their annotations, without the result's."""
        hints = get_type_hints(self.function, include_extras=True)
        hints.pop("return", None)
        names = list(inspect.signature(self.function).parameters)
        return {name: hints.get(name, int) for name in names}

    def compile(self, target: "Unit") -> None:
        """Put the body into the unit."""
        from mem.compiler import Compiler  # which is made of what is declared here

        Compiler(target, self).run()

    def bind(self, address: int) -> None:
        """Give the compiled code's host address."""
        self.address = address
        for made in ("entry", "unlocked"):
            self.__dict__.pop(made, None)

    def _callable(self, kind: Any) -> Any:
        if not self.address:
            raise RuntimeError(f"{self.name} is not compiled yet: load the engine first")
        return kind(ctypes.c_uint64, *[ctypes.c_uint64] * len(self.parameters()))(self.address)

    # Most natives are only ever called by natives, so the objects to call them from Python are made when first used.

    @cached_property
    def entry(self) -> Any:
        """What Python calls, with words as arguments."""
        return self._callable(ctypes.PYFUNCTYPE)

    @cached_property
    def unlocked(self) -> Any:
        """The same, without the interpreter's lock meanwhile."""
        return self._callable(ctypes.CFUNCTYPE)

    def __call__(self, *args: Any) -> int:
        try:
            return self.entry(*args)
        except (ctypes.ArgumentError, TypeError):  # looking at each argument first would take longer than most calls
            return self.entry(*[ctypes.addressof(a) if isinstance(a, ctypes.Structure) else a for a in args])


def native(function: Any = None, *, inline: bool = False, cold: bool = False) -> Any:
    """Decorator: the function is compiled with the engine."""
    if function is None:
        return lambda f: Native(f, inline, cold)
    return Native(function, inline, cold)


class Emitted(Native):
    """A native whose body is emitted by a Python function from the words that it gets (a switch over a table...)."""

    def compile(self, target: "Unit") -> None:
        body = target.functions[self]
        with building(target), emitting(ir.IRBuilder(body.append_basic_block("entry"))) as b:
            words = [
                Record(V(a), hint) if isinstance(hint, type) and issubclass(hint, lay.Layout) else V(a)
                for a, hint in zip(body.args, self.parameters().values(), strict=True)
            ]
            result = self.function(*words)
            if not b.block.is_terminated:
                b.ret(raw(result) if result is not None else const(0))


def emitted(function: Any) -> Any:
    """Decorator: a native whose body is emitted."""
    return Emitted(function, False, False)


class Table:
    """A constant array in the compiled code, indexed like a list (the index is not checked)."""

    def __init__(self, kind: str, values: Any) -> None:
        self.bytes = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}[kind]
        self.values = [int(v) & ((1 << 8 * self.bytes) - 1) for v in values]

    def __getitem__(self, index: int) -> int:
        return self.values[index]


def table(kind: str, values: Any) -> Any:
    """A constant table of u8, u16, u32 or u64."""
    return Table(kind, values)


class Record:
    """A pointer to a record while code is being built."""

    def __init__(self, address: V, cls: type[lay.Layout]) -> None:
        self.address, self.cls = address, cls


class Place:
    """A field or element: where it is and what it holds."""

    def __init__(self, address: V, hint: Any, default: Any) -> None:
        self.address, self.hint, self.default = address, hint, default


class Unit:
    """One LLVM module under construction: the natives reached so far and the tables they use."""

    def __init__(self, name: str = "hartbeat") -> None:
        self.module = ir.Module(name)
        self.functions: dict[Any, ir.Function] = {}
        self.tables: dict[int, ir.GlobalVariable] = {}
        self.pending: list[Native] = []

    def function(self, item: Native) -> ir.Function:
        """The LLVM function of a native; its body is compiled by `finish`."""
        if item not in self.functions:
            kind = ir.FunctionType(I64, [I64] * len(item.parameters()))
            made = ir.Function(self.module, kind, item.name)
            made.linkage = "internal" if item.inline else ""
            made.attributes.add("nounwind")
            if item.inline:
                made.attributes.add("alwaysinline")
            if item.cold:
                made.attributes.add("noinline")
                made.attributes.add("cold")
            self.functions[item] = made
            self.pending.append(item)
        return self.functions[item]

    def external(self, name: str, count: int) -> ir.Function:
        """A C function of `count` words, found in the process (libc)."""
        if name not in self.functions:
            self.functions[name] = ir.Function(self.module, ir.FunctionType(I64, [I64] * count), name)
        return self.functions[name]

    def table(self, item: Table) -> ir.GlobalVariable:
        """The constant array of a table."""
        if id(item) not in self.tables:
            element = INT_OF_BYTES[item.bytes]
            kind = ir.ArrayType(element, len(item.values))
            made = ir.GlobalVariable(self.module, kind, f"table.{len(self.tables)}")
            made.global_constant, made.linkage = True, "internal"
            made.initializer = ir.Constant(kind, item.values)
            self.tables[id(item)] = made
            self._keep = [*getattr(self, "_keep", []), item]
        return self.tables[id(item)]

    def finish(self) -> None:
        """Compile the bodies of all natives reached."""
        while self.pending:
            item = self.pending.pop()
            item.compile(self)


_units: list[Unit] = []


def unit() -> Unit:
    """The unit under construction."""
    return _units[-1]


class building:
    """Context: natives and externals belong to this unit."""

    def __init__(self, target: Unit) -> None:
        self.target = target

    def __enter__(self) -> Unit:
        _units.append(self.target)
        return self.target

    def __exit__(self, *exc: object) -> None:
        _units.pop()


def call(item: Native, *args: Any) -> V:
    """Emit a call of a native."""
    return V(builder().call(unit().function(item), [raw(as_word(a)) for a in args]))


def call_external(name: str, *args: Any) -> V:
    """Emit a call of a libc function of words."""
    return V(builder().call(unit().external(name, len(args)), [raw(as_word(a)) for a in args]))


def pointer(address: Any, bits: ir.Type = I8) -> ir.Value:
    """An LLVM pointer to a host address."""
    return builder().inttoptr(raw(as_word(address)), ir.PointerType(bits))


def load(address: Any, size: int) -> V:
    """Emit a plain load of 1, 2, 4 or 8 bytes, zero-extended; aligned loads are single-copy atomic."""
    kind = INT_OF_BYTES[size]
    value = builder().load(pointer(address, kind), align=1, typ=kind)
    return V(value if size == 8 else builder().zext(value, I64))


def store(address: Any, value: Any, size: int) -> None:
    """Emit a plain store of the lowest 1, 2, 4 or 8 bytes."""
    kind = INT_OF_BYTES[size]
    word = raw(as_word(value))
    builder().store(word if size == 8 else builder().trunc(word, kind), pointer(address, kind), align=1)


def as_word(value: Any) -> Any:
    if isinstance(value, Record):
        return value.address
    if isinstance(value, Place):
        return read(value)
    return value


def field(record: Record, name: str) -> Place:
    """The place of a record's field."""
    if name not in record.cls.fields:
        raise NativeError(f"{record.cls.__name__} has no field {name!r}")
    hint, default = record.cls.fields[name]
    return Place(record.address + record.cls.offset(name), hint, default)


def element(place: Place, index: Any) -> Place:
    """The place of a list's element."""
    if get_origin(place.hint) is not list:
        raise NativeError("only a list field or a table takes an index")
    hint = get_args(place.hint)[0]
    return Place(place.address + index * size_of(hint), hint, None)


def size_of(hint: Any) -> int:
    """Bytes of a field's type."""
    if isinstance(hint, type) and issubclass(hint, lay.Layout):
        return hint.sizeof()
    return ctypes.sizeof(get_args(hint)[1])


def read(place: Place) -> Any:
    """The word in a place, or the record itself."""
    if isinstance(place.hint, type) and issubclass(place.hint, lay.Layout):
        return Record(place.address, place.hint)
    if get_origin(place.hint) is list:
        return place
    return load(place.address, size_of(place.hint))


def write(place: Place, value: Any) -> None:
    """Store a word in a place."""
    if get_origin(place.hint) is list or get_origin(place.hint) is None:
        raise NativeError("only a word can be assigned")
    store(place.address, value, size_of(place.hint))


def ref(place: Any) -> int:
    """The host address of a field or an element (inside natives only)."""
    raise NotImplementedError("ref() is part of the native language")
