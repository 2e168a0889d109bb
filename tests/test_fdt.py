"""Device tree blobs agree with `dtc`, survive a round trip, and damaged ones are refused."""

import shutil
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mem import fdt
from mem.fdt import FdtError, Node

needs_dtc = pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")


def dtc(data: bytes, source: str, target: str) -> bytes:
    command = ["dtc", "-q", "-I", source, "-O", target, "-"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


# The alphabet of Devicetree Specification table 2.1, less what dtc's source syntax takes for something else.
names = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)
values = st.one_of(
    st.just(fdt.EMPTY),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4).map(lambda cells: fdt.u32(*cells)),
    st.integers(0, 2**64 - 1).map(fdt.u64),
    st.lists(st.from_regex(r"[ -~]{1,9}", fullmatch=True), min_size=1, max_size=3).map(lambda s: fdt.strings(*s)),
    st.binary(min_size=1, max_size=9),
)
# dtc reads a meaning into these, and completes or rejects the tree.
properties = st.dictionaries(names.filter(lambda name: name not in ("phandle", "linux-phandle")), values, max_size=4)


def trees(depth: int = 3) -> st.SearchStrategy[Node]:
    if depth == 0:
        return st.builds(Node, names, properties)
    children = st.lists(trees(depth - 1), max_size=3, unique_by=lambda node: node.name)
    return st.builds(Node, names, properties, children)


roots = trees().map(lambda node: Node("", node.properties, node.children))
reservations = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1)), max_size=3)


@given(roots, reservations)
def test_decode_undoes_encode(root, reserved):
    assert fdt.decode(fdt.encode(root, reserved)) == (root, reserved)


@needs_dtc
@settings(max_examples=25)
@given(roots, reservations)
def test_dtc_reads_the_same_tree_and_writes_one_that_we_read(root, reserved):
    # Not through source: dtc prints NUL as \\0 even before a digit, and then reads another character.
    assert fdt.decode(dtc(fdt.encode(root, reserved), "dtb", "dtb")) == (root, reserved)


@needs_dtc
def test_our_bytes_are_dtcs_bytes():
    root = Node("", {"#address-cells": fdt.u32(2), "model": fdt.strings("a", "bc")})
    root.add("cpu@0", {"reg": fdt.u64(0x1_0000_0002), "on": fdt.EMPTY, "model": fdt.strings("x")})
    blob = fdt.encode(root, [(0x8000_0000, 0x1000)])
    theirs = dtc(dtc(blob, "dtb", "dts"), "dts", "dtb")
    # dtc does not pad totalsize; all but that word and the padding is equal.
    size = struct.unpack_from(">I", theirs, 4)[0]
    assert blob[8:size] == theirs[8:size]
    assert set(blob[size:]) <= {0}


def test_header_fields():
    blob = fdt.encode(Node(""))
    magic, size, structure, _, rsvmap, version, compatible, cpu, _, _ = struct.unpack_from(">10I", blob)
    assert (magic, size, version, compatible, cpu) == (0xD00DFEED, len(blob), 17, 16, 0)
    assert rsvmap % 8 == 0 and structure % 4 == 0


def test_values():
    assert fdt.u32(1, 0xFFFF_FFFF) == b"\0\0\0\1\xff\xff\xff\xff"
    assert fdt.u64(0x8000_0000) == b"\0\0\0\0\x80\0\0\0"
    assert fdt.strings("a", "bc") == b"a\0bc\0"
    assert fdt.strings("caf\udce9") == b"caf\xe9\0"
    assert fdt.read_strings(fdt.strings("a", "bc")) == ["a", "bc"]
    assert fdt.read_u64(fdt.u64(7, 9)) == [7, 9]


@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_cell_that_does_not_fit_is_refused(value):
    with pytest.raises(FdtError, match="32 bits"):
        fdt.u32(value)


def test_nul_in_a_string_is_refused():
    with pytest.raises(FdtError, match="NUL"):
        fdt.strings("a\0b")


def test_doubled_node_is_refused():
    root = Node("")
    root.add("a")
    with pytest.raises(FdtError, match="already"):
        root.add("a")


def test_find():
    root = Node("")
    leaf = root.add("soc").add("serial@10000000")
    assert root.find("/soc/serial@10000000") is leaf
    assert root.find("/") is root
    with pytest.raises(KeyError):
        root.find("/soc/rtc")


SAMPLE = fdt.encode(Node("", {"model": fdt.strings("x")}, [Node("a", {"reg": fdt.u32(1)})]), [(16, 32)])


@pytest.mark.parametrize("size", range(0, len(SAMPLE), 3))
def test_truncated_blob_is_refused(size):
    with pytest.raises(FdtError):
        fdt.decode(SAMPLE[:size])


def test_foreign_file_is_refused():
    with pytest.raises(FdtError, match="not a device tree blob"):
        fdt.decode(b"\x7fELF" + bytes(100))


def test_bottomless_tree_is_refused():
    root = node = Node("")
    for _ in range(fdt.MAX_DEPTH + 2):
        node = node.add("a")
    with pytest.raises(FdtError, match="deep"):
        fdt.decode(fdt.encode(root))


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_blob_is_a_tree_or_an_fdt_error(changes):
    blob = bytearray(SAMPLE)
    for at, value in changes:
        blob[at] = value
    try:
        root, _ = fdt.decode(bytes(blob))
    except FdtError:
        return
    assert isinstance(root, Node)
