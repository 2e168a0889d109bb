"""Which port is on which virtio-serial device, and under what number: QEMU's rules, over values only."""

from smp.config import DeviceConfig
from smp.cpu import ConfigError, near

CONSOLE, PORT, BUS = "virtconsole", "virtserialport", "virtio-serial-device"
PORTS = (CONSOLE, PORT)
MOST_PORTS = 31  # as in virtio/console.py
NAME_BYTES = 255

Ports = dict[int, DeviceConfig]


def buses(devices: tuple[DeviceConfig, ...]) -> list[tuple[DeviceConfig, Ports]]:
    """Each virtio-serial device with its ports by number; a port without a bus goes to the last device before it."""
    found: list[tuple[DeviceConfig, Ports]] = [(device, {}) for device in devices if device.driver == BUS]
    for number, device in enumerate(devices):
        if device.driver in PORTS:
            before = sum(other.driver == BUS for other in devices[:number])
            bus, ports = _bus_of(device, found, before)
            ports[_number(device, most_ports(bus), ports)] = device
    return found


def most_ports(bus: DeviceConfig) -> int:
    return int(bus.get("max_ports") or MOST_PORTS)


def offered_ports(bus: DeviceConfig, ports: Ports) -> int:
    """max_nr_ports: with 1 the driver is spared control messages, which a lone console without a name doesn't need."""
    if bus.get("max_ports"):
        return int(bus.get("max_ports"))
    return max([1, *(number + 1 for number in ports), *(2 for port in ports.values() if port.get("name"))])


def _bus_of(device: DeviceConfig, found: list[tuple[DeviceConfig, Ports]], before: int) -> tuple[DeviceConfig, Ports]:
    if not found:
        raise ConfigError(f"-device {device.driver}: has no bus of its own; add -device {BUS} before it")
    wanted = device.get("bus")
    if not wanted:
        return found[max(before, 1) - 1]
    names = [bus.get("id") or f"virtio-serial-bus.{number}" for number, (bus, _) in enumerate(found)]
    for name, pair in zip(names, found, strict=True):
        if wanted in (name, f"{name}.0"):
            return pair
    hint = near(wanted, names) or f"; there are {', '.join(names)}"
    raise ConfigError(f"-device {device.driver},bus={wanted}: no such {BUS}{hint}")


def _number(device: DeviceConfig, most: int, ports: Ports) -> int:
    """Number 0 is a console's: a driver that knows of one port only has that one."""
    text = device.get("nr")
    if text:
        number = int(text)
    elif device.driver == CONSOLE and 0 not in ports:
        number = 0
    else:
        number = next(n for n in range(1, MOST_PORTS + 1) if n not in ports)
    where = f"-device {device.driver},chardev={device.get('chardev')}{f',nr={text}' if text else ''}"
    if number >= most:
        raise ConfigError(f"{where}: number {number} is too high for a {BUS} with max_ports={most}; raise max_ports")
    if number in ports:
        raise ConfigError(f"{where}: there is a port with this number; choose another")
    if number == 0 and device.driver == PORT:
        raise ConfigError(f"{where}: number 0 is a {CONSOLE}'s; choose 1 or more")
    return number


def check_port(given: dict[str, str]) -> None:
    """The properties of one -device; `ConfigError` for what can't be."""
    if len(given.get("name", "").encode(errors="surrogateescape")) > NAME_BYTES:
        raise ConfigError(f"-device name={given['name']}: has more than {NAME_BYTES} bytes; shorten it")
    _check_count("nr", given, 0, MOST_PORTS - 1)
    _check_count("max_ports", given, 1, MOST_PORTS)


def _check_count(key: str, given: dict[str, str], least: int, most: int) -> None:
    text = given.get(key, str(most))
    if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
        raise ConfigError(f"-device {key}={text}: must be {least} to {most}")
