"""-global: properties for every -device of a driver, in either of QEMU's spellings."""

from typing import Any

from smp.cpu import ConfigError, near
from smp.option_text import escape, one_of, pairs, split_commas
from smp.virtio_options import canonical

FALSE = ("off", "false", "no", "0")
# What is no -device of its own, and the values that it has here; () is of no consequence.
OF_TRANSPORT: dict[str, dict[str, tuple[str, ...]]] = {
    "virtio-mmio": {"force-legacy": FALSE, "ioeventfd": ()},
    "virtio-pci": {"disable-legacy": (), "disable-modern": FALSE},
}


def split_global(text: str) -> tuple[str, str, str]:
    """The driver, the property and the value: DRIVER.PROPERTY=VALUE, or driver=,property=,value=."""
    if text.startswith("driver="):
        given = pairs("-global", text, "driver", ("driver", "property", "value"))
        driver, name, value = (given.get(key, "") for key in ("driver", "property", "value"))
    else:
        key, _, value = text.partition("=")
        driver, _, name = key.rpartition(".")
    if not (driver and name and value):
        raise ConfigError(f"-global {text}: write DRIVER.PROPERTY=VALUE, like virtio-mmio.force-legacy=false")
    return driver, name, value


def read_global(text: str) -> dict[str, Any]:
    """Checks what is no -device's; the others are checked with the -device that they are added to."""
    driver, name, value = split_global(text)
    known = OF_TRANSPORT.get(driver)
    if known is None:
        return {}
    if name not in known:
        raise ConfigError(f"-global {text}: unknown property {name!r}; known are {', '.join(known)}")
    if known[name]:
        one_of(f"-global {driver}.{name}=", value, known[name])
    return {}


def check_drivers(texts: list[str], known: tuple[str, ...]) -> None:
    """Each -global is a transport's or that of a known -device."""
    for driver, key, _ in map(split_global, texts):
        if driver not in OF_TRANSPORT and (name := canonical(driver, known)[0]) not in known:
            raise ConfigError(f"-global {driver}.{key}: no such device{near(name, known)} (-device help lists them)")


def with_globals(device: str, texts: list[str], known: tuple[str, ...]) -> str:
    """The text of a -device with the properties that these -global add; what it says itself counts more."""
    driver, *own = split_commas(device)
    name = canonical(driver.removeprefix("driver="), known)[0]
    given = {item.partition("=")[0] for item in own}
    found = {}
    for other, key, value in map(split_global, texts):
        if canonical(other, known)[0] == name and key not in given:
            found[key] = value
    return device + "".join(f",{key}={escape(value)}" for key, value in found.items())
