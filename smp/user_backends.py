"""Virtio back-ends of the user's own: `-device py:MODULE.CLASS,key=value,...`, see docs/BACKENDS.md.

Runs in the supervisor, where a mistake in the class or in its properties is one line.
"""

import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

from smp.config import DeviceConfig
from smp.cpu import ConfigError, near
from smp.option_text import number, switch
from smp.virtio_options import COMMON, USERS
from virtio.device import Device

CONFIG_BYTES = 256
MAX_QUEUES = 64
LARGEST = 1024  # entries of a queue
OURS = ("id", *COMMON)  # properties that are not the class's
# By the annotation of a parameter; whatever has another one gets the text.
READERS: dict[Any, Callable[[str, str, str], Any]] = {
    int: lambda driver, key, text: number(f"-device {driver},{key}=", text),
    float: lambda driver, key, text: float(text),  # a ValueError is described like any other
    bool: switch,
}


def make(given: DeviceConfig) -> Device:
    """The device that a -device names, made with its properties as arguments."""
    found = load(given.driver)
    try:
        device = found(**arguments(found, given))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"-device {given.driver}: {describe(error)}") from error
    check(given.driver, device)
    return device


def load(driver: str) -> type[Device]:
    """The class; its module may lie in the current directory, but does not hide another there."""
    module, dot, name = driver.removeprefix(USERS).rpartition(".")
    if not dot or not module or not name:
        raise ConfigError(f"-device {driver}: write {USERS}MODULE.CLASS")
    sys.path.append("")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"-device {driver}: {error}; set PYTHONPATH to the folder of {module}.py") from error
    except Exception as error:
        raise ConfigError(f"-device {driver}: {describe(error)}") from error
    finally:
        sys.path.remove("")
    if not (isinstance(found, type) and issubclass(found, Device)):
        raise ConfigError(f"-device {driver}: {module} has no class {name} derived from virtio.device.Device")
    return found


def arguments(found: type[Device], given: DeviceConfig) -> dict[str, Any]:
    """What the constructor gets; parameters annotated int, float or bool are converted."""
    parameters = inspect.signature(found).parameters
    wanted = [name for name in parameters if name not in OURS]
    hints = typing.get_type_hints(found.__init__)
    made = {}
    for key, text in given.properties:
        if key in OURS:
            continue
        if key not in wanted:
            hint = near(key, wanted) or f"; {found.__name__} takes {', '.join(wanted) or 'none'}"
            raise ConfigError(f"-device {given.driver}: unknown property {key!r}{hint}")
        reader = READERS.get(hints.get(key))
        made[key] = reader(given.driver, key, text) if reader else text
    for key in wanted:
        if key not in made and parameters[key].default is inspect.Parameter.empty:
            raise ConfigError(f"-device {given.driver}: needs {key}=VALUE")
    return made


def check(driver: str, device: Device) -> None:
    """Raise `ConfigError` unless what a driver will look at is in order."""
    sizes = device.queue_sizes
    if not 1 <= device.kind < 1 << 32:
        raise ConfigError(f"-device {driver}: kind is {device.kind}; give virtio's number of the kind of device")
    if not 1 <= len(sizes) <= MAX_QUEUES or not all(0 < n <= LARGEST and n & (n - 1) == 0 for n in sizes):
        raise ConfigError(
            f"-device {driver}: queue_sizes is {sizes}; give 1 to {MAX_QUEUES} powers of two up to {LARGEST}"
        )
    try:
        size = len(bytes(device.config()))
    except Exception as error:
        raise ConfigError(f"-device {driver}: config(): {describe(error)}") from error
    if size > CONFIG_BYTES:
        raise ConfigError(f"-device {driver}: config() has {size} bytes; {CONFIG_BYTES} is the limit")


def describe(error: Exception) -> str:
    """An error of the user's code, and where it came from."""
    from virtio.mmio import origin

    return f"{type(error).__name__}: {error}{origin(error)}"
