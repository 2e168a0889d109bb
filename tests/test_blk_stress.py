"""A disk in a forked I/O process that is stopped and continued all the time, and reset: what was written is there."""

import hashlib
import os
import random
import signal
import subprocess
from pathlib import Path
from struct import pack

import pytest
from fake_driver import DATA
from forked_io import Hart, finish, fork_io, io_memory, wait

from mem.window import Register
from virtio.blk import OK, Block, Kind
from virtio.image import Image
from virtio.process import IoConfig

SECTORS, SLOT = 512, 3
LOOP = "while kill -STOP $0 2>/dev/null; do sleep 0.003; kill -CONT $0; sleep 0.007; done"


def batch(hart: Hart, kind: Kind, writes: list[tuple[int, bytes]]) -> list[bytes]:
    """Several requests at once; what each of them has read."""
    ring, buffers = hart.rings[0], []
    for n, (sector, data) in enumerate(writes):
        ring.bump = DATA + n * 0x4000
        part = data if kind == Kind.OUT else len(data)
        buffers.append(ring.add(pack("<IIQ", kind, 0, sector), part, 1))
    hart.kick()
    found = 0

    def done() -> bool:
        nonlocal found
        found += len(ring.collect())
        return found == len(writes)

    wait(done)
    view = hart.ram.view
    assert all(bytes(view(chain[-1].address, 1)) == bytes([OK]) for chain in buffers)
    return [bytes(view(chain[1].address, chain[1].size)) for chain in buffers]


@pytest.mark.parametrize("seed", range(2))
def test_what_was_written_is_there(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path, model = tmp_path / "disk", bytearray(SECTORS * 512)
    path.write_bytes(model)
    with io_memory() as ram:
        disk = Block(Image(path))
        child = fork_io(IoConfig({SLOT: disk}))
        hart = Hart(ram, disk, SLOT)
        with subprocess.Popen(["sh", "-c", LOOP, str(child)]) as stopper:
            try:
                for _ in range(12):
                    hart.start()
                    for _ in range(6):
                        places = chance.sample(range(0, SECTORS, 16), 8)
                        writes = [(place, chance.randbytes(512 * chance.randint(1, 16))) for place in places]
                        batch(hart, Kind.OUT, writes)
                        for place, data in writes:
                            model[place * 512 : place * 512 + len(data)] = data
                        assert batch(hart, Kind.IN, writes) == [data for _, data in writes]
                    hart.write(Register.STATUS, 0)
            finally:
                stopper.kill()
                stopper.wait()
                os.kill(child, signal.SIGCONT)
                assert finish(child) == 0
        disk.close()
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(model).digest()
