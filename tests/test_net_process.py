"""A card in a forked I/O process, with a live link: resets under load, and lives of the process one after another."""

import contextlib
import random
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from fake_driver import ALL, DATA, RINGS
from forked_io import Hart, finish, fork_io, io_memory, process, wait
from wire import MAC, PLAIN, RX, TX, Wire, frame, receive

from mem.machine import machine
from mem.window import Register
from virtio.features import IN_ORDER, RING_PACKED
from virtio.net import Net
from virtio.netfeatures import F_MRG_RXBUF
from virtio.netstream import Stream
from virtio.process import IoConfig
from virtio.queue import Ram


@pytest.fixture
def ram() -> Iterator[Ram]:
    with io_memory() as found:
        yield found


def other_side(link: socket.socket) -> None:
    """Send frames all the time, and take what comes."""
    with contextlib.suppress(OSError):
        wire, chance = Wire(link), random.Random(1)
        while True:
            link.setblocking(True)
            wire.send(frame(size=chance.choice([60, 1514, 9000])))
            if any(len(data) > 2000 for data in wire.frames()):
                break
            time.sleep(0.0001)


@pytest.mark.parametrize("features", [ALL | F_MRG_RXBUF, ALL, ALL | F_MRG_RXBUF | RING_PACKED | IN_ORDER])
def test_a_card_touches_nothing_after_a_reset(ram: Ram, features: int) -> None:
    """Frames come and go while a hart resets, and uses the rings' and buffers' memory for something else."""
    ours, theirs = socket.socketpair()
    card = Net(Stream("n0", ours), MAC)
    card.ring_features |= RING_PACKED | IN_ORDER
    child = fork_io(IoConfig({5: card}))
    rig, chance = Hart(ram, card, 5), random.Random(features)
    mark, reused = b"\xa5" * 0x8_0000, (RINGS, DATA, DATA + 0x8_0000)
    rounds = received = sent = 0
    with process(lambda: other_side(theirs)):
        began = time.monotonic()
        while time.monotonic() < began + 3 or rounds <= 50 or received <= 10 or sent <= 10:
            assert time.monotonic() < began + 240, (rounds, received, sent)
            rig.start(features, size=64)
            for _ in range(chance.randrange(60)):
                rig.rings[RX].add(chance.choice([12, 700, 2048]))
            for _ in range(chance.randrange(8)):
                rig.rings[TX].add(PLAIN, frame(size=chance.choice([60, 1514])))
            for queue in chance.sample([RX, TX], 2):
                rig.kick(queue)
            time.sleep(chance.choice([0, 0.0001, 0.0005, 0.002]))
            received, sent = received + rig.rings[RX].has_used(), sent + rig.rings[TX].has_used()
            rig.write(Register.STATUS, 0)
            for start in reused:
                ram.view(start, len(mark))[:] = mark
            time.sleep(0.0005)
            assert all(ram.view(start, len(mark)) == mark for start in reused)
            rounds += 1
    theirs.close()
    assert finish(child) == 0


def test_frames_of_a_link_are_whole_in_every_life_of_the_process(ram: Ram) -> None:
    """A machine's reset comes in the middle of a frame from the other side."""
    ours, theirs = socket.socketpair()
    io, wire = IoConfig({5: Net(Stream("n0", ours), MAC)}), Wire(theirs)
    cut = struct.pack(">I", 3000) + frame(size=3000, fill=7)
    sent = len(cut)
    for life in range(4):
        machine().ending = 0
        child = fork_io(io)
        rig, got = Hart(ram, io.devices[5], 5).start(ALL), []
        for _ in range(20):
            rig.rings[RX].add(4096)
        rig.kick(RX)
        theirs.sendall(cut[sent:])
        wire.send(frame(fill=life))
        expected = [frame(size=3000, fill=7)] * (sent < len(cut)) + [frame(fill=life)]
        while len(got) < len(expected):
            wait(rig.rings[RX].has_used)
            got += [data[12:] for data in receive(rig)]
        assert got == expected
        rig.rings[TX].add(PLAIN + frame(fill=100 + life))
        rig.notify(TX)
        assert wire.frames() == [frame(fill=100 + life)]
        sent = (2, 1000, 3003, 4)[life]
        theirs.sendall(cut[:sent])
        time.sleep(0.05)  # it is read before the end
        assert finish(child) == 0
    theirs.close()
