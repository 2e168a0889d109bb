"""Fixtures that several test modules share."""

from collections.abc import Iterator

import pytest
from bare import Bare, bare_machine


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    """A machine of one hart in this process, for all tests of a module; `bare.reset()` between them is theirs."""
    with bare_machine() as made:
        yield made
