"""virtio-console with several ports: control messages, and each port's data apart from the others'."""

import os
from struct import pack, unpack, unpack_from
from typing import Any

import pytest
from fake_driver import Rig

from smp import options
from smp.config_check import check
from smp.cpu import ConfigError
from smp.io_setup import io_config
from virtio.chardev import IN, OUTPUT_LIMIT, Chardev, FdChardev
from virtio.console import F_EMERG_WRITE, F_MULTIPORT, F_SIZE, NO_PORT, WAITING, Console, Event, Port
from virtio.queue import Ram

CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3


class Kept(Chardev):
    """A host end that keeps what it is sent, as far as it has room."""

    def __init__(self, columns: int = 0, is_there: bool = True) -> None:
        super().__init__()
        self.columns, self.is_there, self.room = columns, is_there, OUTPUT_LIMIT

    def write(self, data: bytes) -> None:
        self.output += data

    def has_room(self) -> bool:
        return len(self.output) < self.room

    def size(self) -> tuple[int, int]:
        return self.columns, 25 if self.columns else 0

    def is_open(self) -> bool:
        return self.is_there


class Driver(Rig):
    """Has buffers for control messages, and takes them down."""

    stride = 0x2_0000

    def begin(self, buffers: int = 16, features: int | None = None) -> "Driver":
        self.start(features, 32)
        self.held: list[Any] = []
        self.give(buffers)
        return self

    def give(self, buffers: int, size: int = 64) -> None:
        for _ in range(buffers):
            self.held += self.rings[CONTROL_RECEIVE].add(size)
        self.notify(CONTROL_RECEIVE)

    def say(self, number: int, event: int, value: int = 1) -> None:
        self.rings[CONTROL_TRANSMIT].add(pack("<IHH", number, event, value))
        self.notify(CONTROL_TRANSMIT)
        self.rings[CONTROL_TRANSMIT].collect()

    def heard(self) -> list[tuple[Any, ...]]:
        """Messages since last time: port, event, value, and what follows if there is more."""
        found = []
        for _, size in self.rings[CONTROL_RECEIVE].collect():
            data = bytes(self.ram.view(self.held.pop(0).address, size))
            found.append((*unpack_from("<IHH", data), *([data[8:]] if data[8:] else [])))
        return found

    def ready(self, *numbers: int) -> list[tuple[Any, ...]]:
        """Every port known to the driver, and open in the guest."""
        self.say(NO_PORT, Event.DEVICE_READY)
        for number in numbers:
            self.say(number, Event.PORT_READY)
            self.say(number, Event.PORT_OPEN)
        return self.heard()


def queue_of(number: int) -> int:
    return 2 * number + 2 if number else 0


def device(**ends: Kept) -> Console:
    """A console as port 0, and named ports."""
    ports = {0: Port(Kept(80))}
    ports |= {n + 1: Port(host, False, name.encode()) for n, (name, host) in enumerate(ends.items())}
    return Console(ports, len(ports))


def test_the_driver_is_told_of_each_port_in_turn(ram: Ram) -> None:
    driver = Driver(ram, device(first=Kept(), absent=Kept(is_there=False))).begin()
    assert driver.features() & 7 == F_SIZE | F_MULTIPORT | F_EMERG_WRITE
    assert unpack("<HHII", driver.device.config()) == (80, 25, 3, 0)
    assert driver.heard() == []
    driver.say(NO_PORT, Event.DEVICE_READY)
    assert driver.heard() == [(number, Event.PORT_ADD, 1) for number in range(3)]
    driver.say(0, Event.PORT_READY)
    assert driver.heard() == [
        (0, Event.CONSOLE_PORT, 1),
        (0, Event.PORT_OPEN, 1),
        (0, Event.RESIZE, 0, pack("<HH", 80, 25)),
    ]
    driver.say(1, Event.PORT_READY)
    assert driver.heard() == [(1, Event.PORT_NAME, 1, b"first\0"), (1, Event.PORT_OPEN, 1)]
    driver.say(2, Event.PORT_READY)
    assert driver.heard() == [(2, Event.PORT_NAME, 1, b"absent\0")]


def test_data_of_six_ports_go_their_own_ways(ram: Ram) -> None:
    hosts = {f"port{n}": Kept() for n in range(1, 7)}
    driver = Driver(ram, device(**hosts)).begin(32)
    driver.ready(*range(7))
    for number, host in enumerate(hosts.values(), 1):
        driver.ask(b"out %d" % number, queue=queue_of(number) + 1)
        assert host.output == b"out %d" % number
        (buffer,) = driver.rings[queue_of(number)].add(16)
        host.input += b"in %d" % number
        driver.transport.poll()
        assert [size for _, size in driver.rings[queue_of(number)].collect()] == [4]
        assert bytes(ram.view(buffer.address, 4)) == b"in %d" % number
    assert driver.device.ports[0].host.output == b""


def test_the_hosts_comings_and_goings_are_reported(ram: Ram) -> None:
    host = Kept(is_there=False)
    driver = Driver(ram, device(port=host)).begin()
    driver.ready(0, 1)
    for is_there in (True, False, True):
        host.is_there = is_there
        driver.transport.poll()
        driver.transport.poll()
        assert driver.heard() == [(1, Event.PORT_OPEN, int(is_there))]


def test_the_end_of_input_comes_after_what_was_sent_before(ram: Ram) -> None:
    reader, writer = os.pipe()
    host = FdChardev(reader, -1)
    driver = Driver(ram, Console({1: Port(host, False, b"stdin")}, 2)).begin()
    assert driver.ready(1)[-1] == (1, Event.PORT_OPEN, 1)
    os.write(writer, b"last words")
    os.close(writer)
    for _ in range(2):
        host.ready(reader, IN)
    driver.transport.poll()
    assert driver.heard() == [], "the driver has no buffer for them yet"
    for size in (4, 16):
        driver.rings[4].add(size)
        driver.notify(4)
        driver.transport.poll()
    assert [size for _, size in driver.rings[4].collect()] == [4, 6]
    assert driver.heard() == [(1, Event.PORT_OPEN, 0)], "a reader in the guest sees the end now"


def test_a_terminals_size_is_told_by_message(ram: Ram) -> None:
    console = device()
    console = Console(console.ports, 2)
    driver = Driver(ram, console).begin()
    driver.ready(0)
    host = console.ports[0].host
    assert isinstance(host, Kept)
    host.columns = 132
    driver.interrupts()
    driver.transport.resized()
    assert driver.heard() == [(0, Event.RESIZE, 0, pack("<HH", 132, 25))]
    assert not driver.interrupts() & 2, "no change of configuration"


def test_input_waits_until_the_port_is_open_in_the_guest(ram: Ram) -> None:
    host = Kept()
    driver = Driver(ram, device(port=host)).begin()
    driver.say(NO_PORT, Event.DEVICE_READY)
    driver.say(1, Event.PORT_READY)
    driver.rings[4].add(8)
    driver.notify(4)
    host.input += b"early"
    driver.transport.poll()
    assert host.input == b"early"
    driver.say(1, Event.PORT_OPEN)
    assert not host.input
    driver.say(1, Event.PORT_OPEN, 0)
    driver.rings[4].add(8)
    host.input += b"late"
    driver.transport.poll()
    assert host.input == b"late"


def test_a_slow_host_takes_a_buffer_in_pieces_and_others_go_on(ram: Ram) -> None:
    slow, quick = Kept(), Kept()
    driver = Driver(ram, device(slow=slow, quick=quick)).begin()
    driver.ready(0, 1, 2)
    sent = bytes(n % 251 for n in range(3 * OUTPUT_LIMIT))
    driver.rings[5].add(*(sent[n : n + 50_000] for n in range(0, len(sent), 50_000)))
    driver.notify(5)
    assert driver.rings[5].collect() == []
    assert len(slow.output) <= 2 * OUTPUT_LIMIT
    driver.ask(b"meanwhile", queue=7)
    assert quick.output == b"meanwhile"
    got = b""
    while slow.output:
        got += bytes(slow.output)
        slow.output.clear()
        driver.transport.poll()
    assert got == sent
    assert len(driver.rings[5].collect()) == 1


def test_a_reset_of_a_queue_or_the_device_forgets_what_was_half_sent(ram: Ram) -> None:
    host = Kept()
    driver = Driver(ram, device(port=host)).begin()
    driver.ready(0, 1)
    host.room = 1
    driver.rings[5].add(b"x" * 50_000, b"y" * 50_000)
    driver.notify(5)
    assert driver.device.ports[1].sending
    driver.write(0x030, 5)
    driver.write(0x0C0, 1)
    assert driver.device.ports[1].sending is None
    driver.begin()
    host.output.clear()
    driver.transport.poll()
    assert host.output == b""
    driver.ready(0, 1)
    driver.ask(b"anew", queue=5)
    assert host.output == b"anew"


def test_without_multiport_there_is_port_0(ram: Ram) -> None:
    console = device(port=Kept())
    driver = Driver(ram, console)
    driver.start(console.ring_features | 1 << 32 | F_SIZE, 32)
    driver.ask(b"old driver", queue=1)
    assert console.ports[0].host.output == b"old driver"
    driver.rings[0].add(8)
    console.ports[0].host.input += b"key"
    driver.transport.poll()
    assert len(driver.rings[0].collect()) == 1
    for queue in (3, 5):
        driver.rings[queue].add(pack("<IHH", 1, Event.PORT_READY, 1))
        driver.notify(queue)
        assert driver.rings[queue].collect() == []
    assert not driver.needs_reset()


def test_a_character_in_an_emergency(ram: Ram) -> None:
    driver = Rig(ram, device())
    for character in b"oops":
        driver.write(0x108, character)
    assert driver.device.hosts()[0].output == b"oops"


def test_messages_without_sense_are_passed_over(ram: Ram) -> None:
    driver = Driver(ram, device(port=Kept())).begin()
    for number in (2, 31, 0x8000_0000, NO_PORT):
        for event in (*Event, 8, 0xFFFF):
            if event != Event.DEVICE_READY:
                driver.say(number, event)
    for message in (b"", b"\0" * 7, b"\xff" * 4096):
        driver.rings[CONTROL_TRANSMIT].add(message)
        driver.notify(CONTROL_TRANSMIT)
    driver.rings[CONTROL_TRANSMIT].add(64)
    driver.notify(CONTROL_TRANSMIT)
    assert driver.heard() == []
    assert not driver.needs_reset()
    assert driver.ready(1)[-1] == (1, Event.PORT_OPEN, 1)


def test_a_driver_that_talks_and_never_listens_has_to_wait(ram: Ram) -> None:
    console = device(port=Kept())
    driver = Driver(ram, console).begin(0)
    for _ in range(4 * WAITING // 32):
        for _ in range(32):
            driver.rings[CONTROL_TRANSMIT].add(pack("<IHH", NO_PORT, Event.DEVICE_READY, 1))
        driver.notify(CONTROL_TRANSMIT)
        driver.rings[CONTROL_TRANSMIT].collect()
        if len(console.messages) >= WAITING:
            break
    assert WAITING <= len(console.messages) < WAITING + 8
    driver.rings[CONTROL_TRANSMIT].add(pack("<IHH", NO_PORT, Event.DEVICE_READY, 1))
    driver.notify(CONTROL_TRANSMIT)
    assert driver.rings[CONTROL_TRANSMIT].collect() == []
    driver.give(32)
    assert len(driver.rings[CONTROL_TRANSMIT].collect()) >= 1
    assert len(console.messages) < WAITING + 8


def test_messages_are_cut_to_the_drivers_buffers(ram: Ram) -> None:
    driver = Driver(ram, device(port=Kept())).begin(0)
    driver.give(1, 3)
    driver.say(NO_PORT, Event.DEVICE_READY)
    assert [size for _, size in driver.rings[CONTROL_RECEIVE].collect()] == [3]
    assert not driver.needs_reset()


def consoles(line: str) -> list[Console]:
    config = options.parse(["-kernel", __file__, "-serial", "none", *line.split()])
    check(config)
    return [found for found in io_config(config).devices.values() if isinstance(found, Console)]


def nulls(count: int) -> str:
    return " ".join(f"-chardev null,id=c{n}" for n in range(count))


def numbers(console: Console) -> dict[int, bytes]:
    return {number: port.name for number, port in console.ports.items()}


def test_numbers_and_buses_are_as_qemu_gives_them() -> None:
    (lone,) = consoles(f"-device virtio-serial-pci -device virtconsole,chardev=c0 {nulls(1)}")
    assert (numbers(lone), lone.most) == ({0: b""}, 1)
    (named,) = consoles(f"-device virtio-serial -device virtserialport,chardev=c0,name=a {nulls(1)}")
    assert (numbers(named), named.most, len(named.queue_sizes)) == ({1: b"a"}, 2, 6)
    line = f"""-device virtio-serial-pci,id=s,max_ports=16 -device virtserialport,chardev=c0,name=a,nr=3
        -device virtio-serial-pci -device virtserialport,chardev=c1,name=b -device virtconsole,chardev=c2
        -device virtconsole,chardev=c3 -device virtserialport,chardev=c4,bus=s.0 {nulls(5)}"""
    first, second = consoles(line)
    assert (numbers(first), first.most) == ({3: b"a", 1: b""}, 16)
    assert (numbers(second), second.most) == ({1: b"b", 0: b"", 2: b""}, 3)
    assert [second.ports[n].is_console for n in (0, 1, 2)] == [True, False, True]


def test_virtme_ngs_six_ports_of_files() -> None:
    pipes = [os.pipe() for _ in range(5)]
    line = "-vga none -display none -parallel none -net none -device virtio-serial-pci"
    line += " -device virtserialport,name=virtme.stdin,chardev=in -chardev stdio,id=in,signal=on,mux=off"
    for number, (_, writer) in enumerate(pipes):
        line += f" -device virtserialport,name=virtme.dev{number},chardev=d{number}"
        line += f" -chardev file,id=d{number},path=/proc/self/fd/{writer}"
    (console,) = consoles(line)
    assert list(numbers(console)) == [1, 2, 3, 4, 5, 6]
    for _, writer in pipes:
        os.close(writer)
    for (reader, _), (_, port) in zip(pipes, list(console.ports.items())[1:], strict=True):
        port.host.write(b"through the pipe")
        assert os.read(reader, 99) == b"through the pipe"
        port.host.close()
        assert os.read(reader, 99) == b""
        os.close(reader)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-device virtserialport,chardev=c0,nr=0", "nr=0 virtconsole"),
        ("-device virtserialport,chardev=c0,nr=31", "nr=31 30"),
        ("-device virtserialport,chardev=c0,nr=x", "nr=x 30"),
        ("-device virtserialport,chardev=c0,bus=other.0", "other.0 virtio-serial-bus.0"),
        ("-device virtserialport,chardev=c0,nr=2 -device virtserialport,chardev=c1,nr=2", "nr=2 another"),
        ("-device virtserialport,chardev=c0,name=n -device virtserialport,chardev=c1,name=n", "name=n 2 times"),
        ("-device virtserialport,chardev=c0 -device virtserialport,chardev=c0", "chardev=c0 2 times"),
        ("-device virtio-serial,max_ports=32", "max_ports=32 31"),
        ("-device virtio-serial,max_ports=0", "max_ports=0 31"),
        ("-device virtio-serial,max_ports=1 -device virtserialport,chardev=c0", "max_ports=1 raise"),
        ("-device virtio-serial,max_ports=1 -device virtconsole,chardev=c0,name=n", "max_ports=1 name"),
    ],
)
def test_ports_that_cannot_be(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        consoles(f"-device virtio-serial-pci {line} {nulls(2)}")
    for word in words.split(" "):
        assert word in str(caught.value)
