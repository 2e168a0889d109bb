"""Device tree blobs: nodes and properties to the flattened format, version 17, and back.

Pure: bytes in, bytes out. Source: Devicetree Specification v0.4, chapter 5.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAGIC = 0xD00DFEED
VERSION, LAST_COMPATIBLE = 17, 16
BEGIN_NODE, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9
MAX_DEPTH = 64

# magic, totalsize, off_dt_struct, off_dt_strings, off_mem_rsvmap, version, last_comp_version,
# boot_cpuid_phys, size_dt_strings, size_dt_struct
HEADER = struct.Struct(">10I")
RESERVATION = struct.Struct(">QQ")

Reservation = tuple[int, int]


class FdtError(ValueError):
    """A value that has no place in a tree, or bytes that are not one."""


@dataclass
class Node:
    """A node; property values are the encoded bytes, see `u32`, `u64`, `strings` and `EMPTY`."""

    name: str
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list["Node"] = field(default_factory=list)

    def add(self, name: str, properties: dict[str, bytes] | None = None) -> "Node":
        """Append a child and return it; two children of one name are an error."""
        if any(child.name == name for child in self.children):
            raise FdtError(f"{name}: there is already a node of this name in {self.name or '/'}")
        child = Node(name, properties or {})
        self.children.append(child)
        return child

    def child(self, name: str) -> "Node":
        """The child of exactly this name; KeyError without one."""
        for child in self.children:
            if child.name == name:
                return child
        raise KeyError(name)

    def find(self, path: str) -> "Node":
        """The node at `path`, such as "/soc/serial@10000000"; KeyError without one."""
        node = self
        for name in filter(None, path.split("/")):
            node = node.child(name)
        return node


EMPTY = b""


def u32(*cells: int) -> bytes:
    """Cells; a phandle is one of them."""
    return _cells(">I", cells)


def u64(*values: int) -> bytes:
    """Pairs of cells, most significant first: addresses and sizes where #address-cells is 2."""
    return _cells(">Q", values)


def _cells(layout: str, values: Iterable[int]) -> bytes:
    try:
        return b"".join(struct.pack(layout, value) for value in values)
    except struct.error as error:
        raise FdtError(f"{values}: does not fit in {8 * struct.calcsize(layout)} bits") from error


def strings(*values: str) -> bytes:
    """NUL-terminated strings one after the other. Bytes of an argument that are not UTF-8 pass unchanged."""
    for value in values:
        if "\0" in value:
            raise FdtError(f"{value!r}: a NUL character can't be part of a device tree string")
    return b"".join(value.encode(errors="surrogateescape") + b"\0" for value in values)


def read_u32(value: bytes) -> list[int]:
    return [cell for (cell,) in struct.iter_unpack(">I", value)]


def read_u64(value: bytes) -> list[int]:
    return [pair for (pair,) in struct.iter_unpack(">Q", value)]


def read_strings(value: bytes) -> list[str]:
    return value.removesuffix(b"\0").decode(errors="surrogateescape").split("\0") if value else []


def encode(root: Node, reservations: Sequence[Reservation] = (), room: int = 0) -> bytes:
    """The blob of a tree; `reservations` are (address, bytes) that the guest must leave alone.

    `room` is how many bytes at least are free at the end, for who adds to the blob in place.
    """
    names: dict[str, int] = {}
    structure = _encode_node(root, names) + u32(END)
    rsvmap = b"".join(RESERVATION.pack(*entry) for entry in (*reservations, (0, 0)))
    table = b"".join(name.encode("ascii") + b"\0" for name in names)
    at_structure = HEADER.size + len(rsvmap)
    at_strings = at_structure + len(structure)
    size = _padded(at_strings + len(table) + room)
    blocks = (size, at_structure, at_strings, HEADER.size)
    header = HEADER.pack(MAGIC, *blocks, VERSION, LAST_COMPATIBLE, 0, len(table), len(structure))
    return (header + rsvmap + structure + table).ljust(size, b"\0")


def _padded(size: int) -> int:
    return (size + 3) & ~3


def _pad(data: bytes) -> bytes:
    return data.ljust(_padded(len(data)), b"\0")


def _encode_node(node: Node, names: dict[str, int]) -> bytes:
    """`names` maps a property's name to its offset in the strings block, in the order of that block."""
    out = [u32(BEGIN_NODE), _pad(node.name.encode("ascii") + b"\0")]
    for name, value in node.properties.items():
        # A name's offset is the length of all names before it, each with its NUL.
        offset = names.setdefault(name, sum(map(len, names)) + len(names))
        out += [u32(PROP, len(value), offset), _pad(value)]
    out += [_encode_node(child, names) for child in node.children]
    out.append(u32(END_NODE))
    return b"".join(out)


def decode(blob: bytes) -> tuple[Node, list[Reservation]]:
    """The tree and the memory reservations of a blob (version 16 or 17), or `FdtError`."""
    if len(blob) < HEADER.size:
        raise FdtError(f"{len(blob)} bytes are too few for a device tree blob")
    magic, size, at_structure, at_strings, at_rsvmap = struct.unpack_from(">5I", blob)
    version, compatible, _, strings_size, _ = struct.unpack_from(">5I", blob, 20)
    if magic != MAGIC:
        raise FdtError(f"magic {magic:#010x} instead of {MAGIC:#010x}: not a device tree blob")
    if version < LAST_COMPATIBLE or compatible > VERSION:
        raise FdtError(f"device tree blob of version {version}: version {VERSION} is needed")
    if size > len(blob):
        raise FdtError(f"device tree blob of {size} bytes is truncated to {len(blob)}")
    table = blob[at_strings : at_strings + strings_size]
    return _Decoder(blob[:size], at_structure, table).tree(), _reservations(blob[:size], at_rsvmap)


def _reservations(blob: bytes, at: int) -> list[Reservation]:
    entries: list[Reservation] = []
    while at + RESERVATION.size <= len(blob):
        entry = RESERVATION.unpack_from(blob, at)
        if entry == (0, 0):
            return entries
        entries.append((entry[0], entry[1]))
        at += RESERVATION.size
    raise FdtError("the memory reservation block of the device tree has no end")


class _Decoder:
    """Walks the structure block; every read is checked against the blob's end."""

    def __init__(self, blob: bytes, at: int, table: bytes) -> None:
        self.blob, self.at, self.table = blob, at, table

    def tree(self) -> Node:
        if self.token() != BEGIN_NODE:
            raise FdtError("the device tree does not start with its root node")
        root = self.node(0)
        if self.token() != END:
            raise FdtError("the device tree has something after its root node")
        return root

    def node(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise FdtError(f"the device tree is more than {MAX_DEPTH} nodes deep")
        node = Node(self.text(self.blob, self.at))
        self.take(len(node.name) + 1)
        while (token := self.token()) != END_NODE:
            if token == PROP:
                size, name = read_u32(self.take(8))
                node.properties[self.text(self.table, name)] = self.take(size)
            elif token == BEGIN_NODE:
                node.children.append(self.node(depth + 1))
            else:
                raise FdtError(f"unknown token {token} in the device tree at {self.at - 4:#x}")
        return node

    def token(self) -> int:
        while (token := read_u32(self.take(4))[0]) == NOP:
            pass
        return token

    def take(self, size: int) -> bytes:
        """The next `size` bytes; the position goes on to the next multiple of four."""
        if self.at + size > len(self.blob):
            raise FdtError("the structure block of the device tree is truncated")
        data = self.blob[self.at : self.at + size]
        self.at = _padded(self.at + size)
        return data

    @staticmethod
    def text(block: bytes, at: int) -> str:
        end = block.find(b"\0", at) if at < len(block) else -1
        try:
            if end >= 0:
                return block[at:end].decode("ascii")
        except UnicodeDecodeError:
            pass
        raise FdtError(f"the device tree has a damaged name at {at:#x}")
