"""virtio-net on a stream link: frames both ways, buffers merged and missing, filters, commands, hostile drivers."""

from struct import pack, unpack

import pytest
from fake_driver import ALL, DATA, FEATURES_OK, Rig, Ring
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import EVERYBODY, GROUP, MAC, OTHER, PLAIN, RX, TX, begin, card, frame, offer, receive, transmit, turn

from mem.window import Register
from virtio.net import ERR, MAX_PAIRS, OK, Net
from virtio.netdev import MAX_FRAME, Frame, Netdev
from virtio.netfeatures import (
    F_CTRL_MAC_ADDR,
    F_CTRL_RX,
    F_CTRL_RX_EXTRA,
    F_CTRL_VQ,
    F_GUEST_ANNOUNCE,
    F_GUEST_CSUM,
    F_MAC,
    F_MQ,
    F_MRG_RXBUF,
    F_MTU,
    F_STATUS,
)
from virtio.nethub import HubPort
from virtio.queue import Ram

CONTROL = 2
HASH_REPORT, RSS = 1 << 57, 1 << 60
LINK_UP, ANNOUNCE = 1, 2


def config(rig: Rig) -> tuple[bytes, int, int, int]:
    """mac, status, max_virtqueue_pairs and mtu as the driver reads them."""
    data = bytes(rig.read(Register.CONFIG + n, 1) for n in range(12))
    mac, status, pairs, mtu = unpack("<6sHHH", data)
    return mac, status, pairs, mtu


def command(rig: Rig, kind: int, number: int, data: bytes = b"") -> int:
    used, (answer,) = rig.ask(bytes([kind, number]), *([data] if data else []), 1, queue=CONTROL)
    assert used == 1
    return answer[0]


# Sending


@pytest.mark.parametrize("indirect", [False, True])
def test_any_framing_is_sent_without_its_header(ram: Ram, indirect: bool) -> None:
    data = frame(size=200)
    with card(ram) as (rig, wire):
        for parts in ([PLAIN + data], [PLAIN, data], [PLAIN[:5], PLAIN[5:] + data[:1], data[1:50], b"", data[50:]]):
            assert [size for _, size in transmit(rig, *parts, indirect=indirect)] == [0]
            assert wire.frames() == [data]


def test_a_batch_is_sent_in_order_with_one_interrupt(ram: Ram) -> None:
    with card(ram, ALL & ~(1 << 29) | F_MRG_RXBUF) as (rig, wire):
        frames = [frame(fill=n) for n in range(30)]
        for data in frames:
            rig.rings[TX].add(PLAIN + data)
        raised = []
        rig.transport.queues[TX].interrupt = lambda: raised.append(1)
        rig.notify(TX)
        assert wire.frames() == frames
        assert len(rig.rings[TX].collect()) == 30
        assert raised == [1]


@pytest.mark.parametrize("size", [0, 13, MAX_FRAME + 1])
def test_what_is_no_frame_is_lost_and_given_back(ram: Ram, size: int) -> None:
    with card(ram) as (rig, wire):
        assert len(transmit(rig, PLAIN, bytes(size))) == 1
        assert wire.frames() == []
        assert not rig.needs_reset()
        transmit(rig, PLAIN, frame())
        assert wire.frames() == [frame()]


@pytest.mark.parametrize("parts", [[b""], [b"", b"", b""], [bytes(11)], [b"", 64]])
def test_less_than_a_header_needs_a_reset(ram: Ram, parts: list[bytes | int]) -> None:
    """Descriptors without a byte are walked once, not for ever (CVE-2016-6490)."""
    with card(ram) as (rig, wire):
        transmit(rig, *parts)
        assert rig.needs_reset()
        begin(rig)
        transmit(rig, PLAIN + frame())
        assert wire.frames() == [frame()]


def test_a_frame_in_hundreds_of_pieces(ram: Ram) -> None:
    data = frame(size=1200)
    with card(ram) as (rig, wire):
        transmit(rig, PLAIN, *(data[n : n + 1] for n in range(200)), data[200:], indirect=True)
        assert wire.frames() == [data]


def test_frames_wait_while_the_other_side_is_full(ram: Ram) -> None:
    """They are given back when they have gone, each once and in order."""
    with card(ram) as (rig, wire):
        ring, sent, got, used = rig.rings[TX], 0, [], 0
        while not rig.device.state[0].held:
            ring.bump = DATA + 0x8_0000
            ring.add(PLAIN + frame(size=20_000, fill=sent % 251))
            rig.notify(TX)
            used += len(ring.collect())
            sent += 1
            assert sent < 500
        assert used < sent
        while len(got) < sent:
            got += wire.frames()
            turn(rig)
            used += len(ring.collect())
        assert [data[20] for data in got] == [n % 251 for n in range(sent)]
        assert used == sent


def fill_up(rig: Rig) -> int:
    """Send until the other side is full; how many frames were taken off the driver's hands."""
    taken = 0
    while not rig.device.state[0].held:
        rig.rings[TX].bump = DATA + 0x8_0000
        rig.rings[TX].add(PLAIN + frame(size=20_000))
        rig.notify(TX)
        taken += len(rig.rings[TX].collect())
    return taken


def test_a_reset_forgets_what_waits(ram: Ram) -> None:
    """Nothing of before may be given back into the rings of after (CVE-2021-3748)."""
    with card(ram) as (rig, wire):
        taken = fill_up(rig)
        offer(rig, 2, 100)
        wire.send(frame(size=1000))  # two of ten buffers
        turn(rig)
        assert rig.device.state[0].late
        begin(rig)
        found = wire.frames()
        turn(rig)
        assert len(found + wire.frames()) == taken
        assert [ring.collect() for ring in rig.rings] == [[], [], []]


@pytest.mark.parametrize("index", [RX, TX])
def test_a_queue_that_is_reset_forgets_what_waits(ram: Ram, index: int) -> None:
    with card(ram) as (rig, wire):
        taken = fill_up(rig)
        offer(rig, 2, 100)
        wire.send(frame(size=1000))
        turn(rig)
        rig.write(Register.QUEUE_SEL, index)
        rig.write(Register.QUEUE_RESET, 1)
        ring = rig.rings[index] = Ring(ram, 64, rig.rings[index].table, rig.rings[index].event_index)
        ring.bump = DATA + index * 0x8_0000
        rig.set_up(index, ring)
        found = wire.frames()
        offer(rig, 10, 300)
        turn(rig)
        transmit(rig, PLAIN + frame(size=100))
        turn(rig)
        assert b"".join(receive(rig))[12:] == frame(size=1000)
        *found, last = found + wire.frames()
        assert last == frame(size=100)
        assert len(found) == taken + (index == RX)  # the one that waited for the other side
        assert not rig.needs_reset()


# Receiving


@pytest.mark.parametrize("sizes", [(2000,), (12, 2000), (5, 8, 1, 2000)])
@pytest.mark.parametrize("merging", [F_MRG_RXBUF, 0])
def test_a_frame_is_received_after_its_header(ram: Ram, sizes: tuple[int, ...], merging: int) -> None:
    with card(ram, ALL | merging) as (rig, wire):
        offer(rig, 2, *sizes)
        wire.send(frame(size=1514))
        turn(rig)
        assert receive(rig) == [bytes(10) + b"\1\0" + frame(size=1514)]
        assert rig.interrupts() == 1


def test_a_large_frame_is_merged_from_several_buffers(ram: Ram) -> None:
    with card(ram) as (rig, wire):
        offer(rig, 10, 700)
        wire.send(frame(size=2000), frame(size=60, fill=9))
        turn(rig)
        first, second, third, fourth = receive(rig)
        assert first[:12] == bytes(10) + b"\3\0"
        assert first[12:] + second + third == frame(size=2000)
        assert fourth == bytes(10) + b"\1\0" + frame(size=60, fill=9)


def test_the_buffers_of_a_frame_appear_together(ram: Ram) -> None:
    """A driver that finds the first looks for the others at once."""
    with card(ram) as (rig, wire):
        offer(rig, 2, 700)
        wire.send(frame(size=2000))
        turn(rig)
        assert unpack("<H", ram.view(rig.rings[RX].used + 2, 2)) == (0,)
        offer(rig, 1, 700)
        turn(rig)
        assert [len(data) for data in receive(rig)] == [700, 700, 12 + 2000 - 1400]


def test_a_batch_is_received_with_one_interrupt(ram: Ram) -> None:
    with card(ram, ALL & ~(1 << 29) | F_MRG_RXBUF) as (rig, wire):
        offer(rig, 40, 200)
        raised = []
        rig.transport.queues[RX].interrupt = lambda: raised.append(1)
        wire.send(*(frame(fill=n) for n in range(40)))
        turn(rig)
        assert [data[12:] for data in receive(rig)] == [frame(fill=n) for n in range(40)]
        assert raised == [1]


def test_frames_wait_for_buffers(ram: Ram) -> None:
    with card(ram) as (rig, wire):
        offer(rig, 2, 500)
        wire.send(frame(size=1400), frame(fill=7))
        turn(rig)
        assert receive(rig) == []
        rig.rings[RX].add(500)
        rig.notify(RX)
        first, *_ = received = receive(rig)
        assert len(received) == 3 and first[10] == 3
        assert (b"".join(received))[12:] == frame(size=1400)
        offer(rig, 1, 500)
        turn(rig)
        assert receive(rig) == [bytes(10) + b"\1\0" + frame(fill=7)]


def test_a_frame_larger_than_the_ring_is_lost(ram: Ram) -> None:
    with card(ram) as (rig, wire):
        begin(rig, size=4)
        offer(rig, 4, 100)
        wire.send(frame(size=1400), frame())
        turn(rig)
        assert receive(rig) == [bytes(10) + b"\1\0" + frame()]


def test_without_merging_a_frame_that_does_not_fit_is_lost(ram: Ram) -> None:
    with card(ram, ALL) as (rig, wire):
        offer(rig, 3, 500)
        wire.send(frame(size=1400), frame())
        turn(rig)
        assert receive(rig) == [bytes(10) + b"\1\0" + frame()]


def test_a_buffer_without_room_for_a_header_needs_a_reset(ram: Ram) -> None:
    with card(ram) as (rig, wire):
        for parts in ([11], [b"x"]):
            begin(rig)
            rig.rings[RX].add(*parts)
            rig.notify(RX)
            wire.send(frame())
            turn(rig)
            assert rig.needs_reset()


def test_a_driver_that_is_not_ready_finds_the_frames_later(ram: Ram) -> None:
    with card(ram, start=False) as (rig, wire):
        wire.send(frame())
        turn(rig)
        begin(rig)
        offer(rig, 1, 100)
        turn(rig)
        assert len(receive(rig)) == 1


def test_a_larger_frame_than_the_mtu_is_not_passed_on(ram: Ram) -> None:
    with card(ram, mtu=1000) as (rig, wire):
        assert rig.features() & F_MTU and config(rig)[3] == 1000
        offer(rig, 4, 2000)
        wire.send(frame(size=1019), frame(size=1014))
        turn(rig)
        assert [len(data) for data in receive(rig)] == [12 + 1014]


# The carrier


def test_the_carrier_goes_with_the_link(ram: Ram) -> None:
    with card(ram) as (rig, wire):
        assert config(rig) == (MAC, LINK_UP, 1, 0)  # and no need to announce it
        rig.interrupts()
        wire.link.close()
        turn(rig)
        assert config(rig)[1] == 0
        assert rig.interrupts() == 2
        assert len(transmit(rig, PLAIN + frame())) == 1  # lost


def test_what_a_host_says_of_checksums_is_for_drivers_that_asked(ram: Ram) -> None:
    class Checked(Netdev):
        offloads = F_GUEST_CSUM
        waiting = 2

        def receive(self, queue: int) -> Frame | None:
            self.waiting -= 1
            return Frame([memoryview(frame())], b"\2" + bytes(11)) if self.waiting >= 0 else None

    for lacks in (0, F_GUEST_CSUM):
        rig = begin(Rig(ram, Net(Checked(), MAC)), lacks=lacks)
        offer(rig, 2, 200)
        turn(rig)
        assert {data[0] for data in receive(rig)} == {0 if lacks else 2}


def test_a_card_that_is_plugged_in_again_makes_itself_known(ram: Ram) -> None:
    class Plug(Netdev):
        is_up = False

    rig = begin(Rig(ram, Net(Plug(), MAC)))
    assert config(rig)[1] == 0
    rig.device.host.is_up = True
    turn(rig)
    assert config(rig)[1] == LINK_UP | ANNOUNCE
    assert command(rig, 3, 1) == ERR
    assert command(rig, 3, 0) == OK
    assert config(rig)[1] == LINK_UP
    assert command(rig, 3, 0) == ERR


# Features and commands


def test_what_is_offered(ram: Ram) -> None:
    with card(ram, start=False) as (rig, _):
        offered = rig.features()
        wanted = F_MAC | F_STATUS | F_MRG_RXBUF | F_CTRL_VQ | F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR
        assert offered & (wanted | F_GUEST_ANNOUNCE) == wanted | F_GUEST_ANNOUNCE
        assert not offered & (F_MTU | F_MQ | F_GUEST_CSUM | HASH_REPORT | RSS)
    with card(ram, start=False, lacks=F_CTRL_VQ) as (rig, _):
        assert not rig.features() & (F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC_ADDR | F_GUEST_ANNOUNCE)
        assert len(begin(rig).rings) == 2


@pytest.mark.parametrize("feature", [HASH_REPORT, RSS, F_MQ])
def test_a_header_of_another_size_can_not_be_had(ram: Ram, feature: int) -> None:
    """With HASH_REPORT it would be longer than the room for it (CVE-2023-6693)."""
    with card(ram, start=False) as (rig, _):
        assert not rig.negotiate(rig.features() | feature) & FEATURES_OK


def test_the_address_can_be_set_until_a_reset(ram: Ram) -> None:
    with card(ram) as (rig, _):
        assert command(rig, 1, 1, OTHER) == OK
        assert config(rig)[0] == OTHER
        assert command(rig, 1, 1, OTHER[:5]) == ERR
        assert command(rig, 1, 1, OTHER + b"x") == ERR
        rig.write(Register.STATUS, 0)
        assert config(rig)[0] == MAC


def tables(unicast: list[bytes], multicast: list[bytes]) -> bytes:
    return b"".join(pack("<I", len(macs)) + b"".join(macs) for macs in (unicast, multicast))


@pytest.mark.parametrize(
    ("modes", "table", "passed"),
    [
        ({0: 1}, ([], []), "own other everybody group"),
        ({}, ([], []), "own everybody"),
        ({}, ([OTHER], []), "own other everybody"),
        ({}, ([], [GROUP]), "own everybody group"),
        ({1: 1}, ([], []), "own everybody group"),
        ({2: 1}, ([], []), "own other everybody"),
        ({1: 1, 3: 1}, ([], [GROUP]), "own everybody"),
        ({2: 1, 4: 1}, ([OTHER], []), "everybody"),
        ({5: 1}, ([], []), "own"),
    ],
)
def test_the_receive_filter(ram: Ram, modes: dict[int, int], table: tuple, passed: str) -> None:
    targets = {"own": MAC, "other": OTHER, "everybody": EVERYBODY, "group": GROUP}
    with card(ram) as (rig, wire):
        offer(rig, 8, 100)
        for number, on in ({0: 0} | modes).items():
            assert command(rig, 0, number, bytes([on])) == OK
        assert command(rig, 1, 0, tables(*table)) == OK
        wire.send(*(frame(to) for to in targets.values()))
        turn(rig)
        assert [data[12:18] for data in receive(rig)] == [targets[name] for name in passed.split()]


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (0, 0, b""),
        (0, 0, b"\2"),
        (0, 6, b"\1"),
        (1, 0, b""),
        (1, 0, pack("<I", 1)),
        (1, 0, pack("<I", 0xFFFF_FFFF) + bytes(60)),
        (1, 0, pack("<I", 0x2AAA_AAAB) + bytes(8)),
        (1, 0, tables([], []) + b"x"),
        (1, 2, MAC),
        (2, 0, b"\1\0"),
        (4, 0, b"\1\0"),
        (5, 0, bytes(8)),
        (255, 255, b""),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(ram: Ram, kind: int, number: int, data: bytes) -> None:
    with card(ram) as (rig, _):
        before = config(rig)
        assert command(rig, kind, number, data) == ERR
        assert config(rig) == before and not rig.needs_reset()


def test_a_table_that_is_refused_changes_nothing(ram: Ram) -> None:
    with card(ram) as (rig, wire):
        offer(rig, 4, 100)
        assert command(rig, 0, 0, b"\0") == OK
        assert command(rig, 1, 0, tables([OTHER], [])) == OK
        assert command(rig, 1, 0, tables([MAC], [GROUP]) + b"x") == ERR
        wire.send(frame(GROUP), frame(OTHER))
        turn(rig)
        assert [data[12:18] for data in receive(rig)] == [OTHER]


@pytest.mark.parametrize("size", [0, 1, 5, 13])
def test_what_comes_without_addresses_is_no_frame(ram: Ram, size: int) -> None:
    """A stream's peer may send it; the filter has nothing to look at."""
    with card(ram) as (rig, wire):
        offer(rig, 4, 100)
        assert command(rig, 0, 0, b"\0") == OK
        wire.send(bytes(size), frame())
        turn(rig)
        assert [data[12:] for data in receive(rig)] == [frame()]
        assert not rig.needs_reset()


def test_commands_of_features_that_were_not_negotiated_are_refused(ram: Ram) -> None:
    with card(ram, ALL | F_CTRL_VQ) as (rig, _):
        for kind, number, data in ((0, 0, b"\0"), (1, 0, tables([], [])), (3, 0, b"")):
            assert command(rig, kind, number, data) == ERR
    with card(ram, ALL | F_CTRL_VQ | F_CTRL_RX) as (rig, _):
        assert command(rig, 0, 1, b"\1") == OK
        assert command(rig, 0, 2, b"\1") == ERR


@pytest.mark.parametrize("parts", [[b"\0\0\1"], [b""], [b"\0\0\1", b""]])
def test_a_command_without_room_for_its_answer_needs_a_reset(ram: Ram, parts: list[bytes]) -> None:
    with card(ram) as (rig, _):
        rig.rings[CONTROL].add(*parts)
        rig.notify(CONTROL)
        assert rig.needs_reset()


def test_a_short_or_an_endless_command_is_refused(ram: Ram) -> None:
    with card(ram) as (rig, _):
        assert rig.ask(b"\0", 1, queue=CONTROL)[1] == [bytes([ERR])]
        assert rig.ask(b"\1\0", *[bytes(0x8000)] * 3, 1, queue=CONTROL)[1] == [bytes([ERR])]


@given(st.binary(max_size=2), st.binary(max_size=40), st.integers(0, 3))
@settings(max_examples=150)
def test_any_command_is_answered(ram: Ram, head: bytes, data: bytes, room: int) -> None:
    with card(ram) as (rig, wire):
        rig.rings[CONTROL].add(head, data, room)
        rig.notify(CONTROL)
        assert len(rig.rings[CONTROL].collect()) == (room > 0)
        assert rig.needs_reset() == (room == 0)
        begin(rig)
        transmit(rig, PLAIN + frame())
        assert wire.frames() == [frame()]


@given(st.binary(max_size=12), st.binary(max_size=120), st.integers(0, 60))
@settings(max_examples=250)
def test_any_header_and_frame_is_given_back(ram: Ram, header: bytes, data: bytes, cut: int) -> None:
    with card(ram) as (rig, wire):
        whole = header + data
        used = transmit(rig, whole[:cut], whole[cut:])
        assert len(used) == (len(whole) >= 12) == (not rig.needs_reset())
        assert all(len(got) >= 14 for got in wire.frames())
        begin(rig)
        transmit(rig, PLAIN + frame())
        assert wire.frames() == [frame()]


# Queues


class Wide(Netdev):
    """A netdev with several queues, which remembers what it was given."""

    queues = 4

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.pairs = 0

    def send(self, queue: int, frames: list) -> int:
        self.sent += [queue] * len(frames)
        return len(frames)

    def configure(self, features: int, queues: int) -> None:
        self.pairs = queues


def test_queue_pairs_are_used_when_the_driver_says_so(ram: Ram) -> None:
    host = Wide()
    rig = Rig(ram, Net(host, MAC, pairs=MAX_PAIRS))
    assert config(rig)[2] == 4 and rig.features() & F_MQ
    begin(rig)
    assert host.pairs == 1

    def set_pairs(count: int) -> int:
        ring = rig.rings[8]
        ring.bump = DATA
        *_, answer = ring.add(b"\4\0", pack("<H", count), 1)
        rig.notify(8)
        assert len(ring.collect()) == 1
        return ram.view(answer.address, 1)[0]

    def send(queue: int) -> None:
        rig.rings[queue].bump = DATA
        rig.rings[queue].add(PLAIN + frame())
        rig.notify(queue)

    send(3)
    assert host.sent == []
    assert [set_pairs(count) for count in (0, 5, 3)] == [ERR, ERR, OK]
    assert host.pairs == 3
    for queue in (1, 5, 7):
        send(queue)
    assert host.sent == [0, 2]
    rig.write(Register.STATUS, 0)
    assert host.pairs == 1


def test_without_multiqueue_the_third_queue_is_for_commands(ram: Ram) -> None:
    rig = Rig(ram, Net(Wide(), MAC, pairs=4))
    begin(rig, lacks=F_MQ)
    assert command(rig, 0, 0, b"\0") == OK
    assert command(rig, 4, 0, b"\1\0") == ERR


# Hubs


def test_a_hub_passes_everything_to_all_others(ram: Ram) -> None:
    """A card's own queues are never touched by another's: it only finds frames at its turn (CVE-2024-3446)."""
    ports: list[HubPort] = []
    a, b = (Rig(ram, Net(HubPort(name, ports), MAC), slot) for slot, name in enumerate("ab"))
    begin(a)
    assert len(transmit(a, PLAIN + frame(fill=1))) == 1
    assert a.rings[TX].collect() == []
    assert not a.transport.poll()
    begin(b)
    offer(b, 3, 100)
    turn(b)
    assert [data[12:] for data in receive(b)] == [frame(fill=1)]
    b.transport.poll()
    assert receive(b) == []


def test_a_hub_reaches_the_world_by_its_uplink(ram: Ram) -> None:
    ports: list[HubPort] = []
    with card(ram, start=False) as (outside, wire):
        up = HubPort("up", ports, outside.device.host)
        rig = begin(Rig(ram, Net(HubPort("a", ports), MAC), 1))
        offer(rig, 3, 100)
        transmit(rig, PLAIN + frame(fill=1))
        assert wire.frames() == [frame(fill=1)]
        wire.send(frame(fill=2))
        for fd, events in up.interest().items():
            up.ready(fd, events)
        assert up.poll() and not up.poll()
        assert rig.transport.poll()
        assert [data[12:] for data in receive(rig)] == [frame(fill=2)]


def test_a_card_that_takes_nothing_costs_a_hub_only_its_own_frames(ram: Ram) -> None:
    ports: list[HubPort] = []
    idle, busy = HubPort("idle", ports), HubPort("busy", ports)
    rig = begin(Rig(ram, Net(HubPort("a", ports), MAC), 1))
    for _ in range(600):
        transmit(rig, PLAIN + frame())
        assert busy.receive(0) is not None
    assert len(idle.waiting) == 512
