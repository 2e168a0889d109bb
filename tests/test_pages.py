"""Pages are compared word by word, all of them."""

import ctypes

import pytest

from mem.pages import pages_differ
from smp import engine

PAGE = 4096


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    engine.load()


def test_every_bit_counts() -> None:
    a, b = (ctypes.create_string_buffer(PAGE) for _ in range(2))
    assert not pages_differ(ctypes.addressof(a), ctypes.addressof(b))
    for at in range(PAGE):
        b[at] = 1 << at % 8
        assert pages_differ(ctypes.addressof(a), ctypes.addressof(b))
        b[at] = 0
    assert not pages_differ(ctypes.addressof(a), ctypes.addressof(b))
