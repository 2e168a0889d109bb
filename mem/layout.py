"""Records in shared memory, declared once as annotated classes.

`@layout` turns the annotations into a ctypes structure: Python code reads and writes a record's fields through
`Class.at(address)`, native code (mem/native.py) through a parameter annotated with the class.  A field is `u8`
to `u64`, another layout, or `list[...] = many(n)`.  Fields sit in order of declaration at their natural
alignment; `Class.offset("field")` is what the displacement of a load would be.
"""

import ctypes
import inspect
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

u8 = Annotated[int, ctypes.c_uint8]
u16 = Annotated[int, ctypes.c_uint16]
u32 = Annotated[int, ctypes.c_uint32]
u64 = Annotated[int, ctypes.c_uint64]

CACHE_LINE = 64


class Many:
    """How often a list field repeats its element."""

    def __init__(self, count: int) -> None:
        self.count = count


def many(count: int) -> Any:
    """The length of a list field: `x: list[u64] = many(32)`."""
    return Many(count)


C = TypeVar("C", bound="Layout")


class Layout:
    """Base of all records; `ctype` is the ctypes structure made by @layout."""

    ctype: type[ctypes.Structure]
    fields: dict[str, Any]

    @classmethod
    def at(cls: type[C], address: int) -> C:
        """The record that lies at this host address (no bounds are checked)."""
        return cls.ctype.from_address(address)  # type: ignore[return-value]

    @classmethod
    def sizeof(cls) -> int:
        """Bytes that a record takes."""
        return ctypes.sizeof(cls.ctype)

    @classmethod
    def offset(cls, name: str) -> int:
        """Bytes from the record's start to the field."""
        return getattr(cls.ctype, name).offset


def _ctype_of(hint: Any, default: Any) -> Any:
    if get_origin(hint) is list:
        if not isinstance(default, Many):
            raise TypeError("a list field needs '= many(n)'")
        return _ctype_of(get_args(hint)[0], None) * default.count
    if get_origin(hint) is Annotated:
        return get_args(hint)[1]
    if isinstance(hint, type) and issubclass(hint, Layout):
        return hint.ctype
    raise TypeError(f"{hint!r} is no field type")


def layout(cls: type[C]) -> type[C]:
    """Class decorator: lay the annotated fields out in order."""
    hints = get_type_hints(cls, include_extras=True)
    own = {name: hints[name] for name in inspect.get_annotations(cls)}
    cls.fields = {name: (hint, cls.__dict__.get(name)) for name, hint in own.items()}
    members = [(name, _ctype_of(hint, default)) for name, (hint, default) in cls.fields.items()]
    cls.ctype = type(cls.__name__, (ctypes.Structure,), {"_fields_": members})
    return cls


def line_aligned(cls: type[C]) -> type[C]:
    """Class decorator, above @layout: a record must fill whole cache lines, so that neighbours share none."""
    if cls.sizeof() % CACHE_LINE:
        raise TypeError(f"{cls.__name__} is {cls.sizeof()} bytes, not a multiple of {CACHE_LINE}: pad it")
    return cls
