"""Changes an ext4 image from outside, without mounting it: debugfs(8), resize2fs(8), e2fsck(8). Needs no root."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smp.guest import GuestError

FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # which not everybody has in PATH


def ext4_tool(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + FOLDERS)


def run_tool(
    command: list[str], environment: Mapping[str, str] | None = None, given: str = "", fine: tuple[int, ...] = (0,)
) -> str:
    """Its standard output; GuestError says why when the status is not `fine`."""
    name, command = command[0], [ext4_tool(command[0]) or command[0], *command[1:]]
    everywhere = dict(environment or os.environ) | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=everywhere)
    if done.returncode not in fine:
        raise GuestError(f"{name} failed with status {done.returncode}: {reason_in(done.stderr or done.stdout)}")
    return done.stdout


def reason_in(said: str) -> str:
    """The line that tells why: the first error as apt and mmdebstrap mark them, else the last; if that one is about a
    hook, what the hook said last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no message"]
    first = next((number for number, line in enumerate(lines) if line.startswith("E: ")), len(lines) - 1)
    if "command failed" in lines[first] and first:
        first -= 1
    return lines[first].removeprefix("E: ")


@dataclass(frozen=True)
class Disk:
    """An image with one ext4 file system, which nobody has mounted."""

    path: Path

    def read(self, name: str) -> str:
        return run_tool(["debugfs", "-R", f"cat {name}", str(self.path)])

    def write(self, name: str, text: str, permissions: int = 0o644, group: int = 0) -> None:
        """The file of root's, made anew."""
        folder, _, last = name.rpartition("/")
        with tempfile.NamedTemporaryFile("w") as source:
            source.write(text)
            source.flush()
            self._change(f"cd {folder or '/'}", f"rm {last}", f"write {shlex.quote(source.name)} {last}")
        self._own(name, 0o100000 | permissions, group)
        # debugfs ends with status 0 whatever happens.
        if self.read(name) != text:
            raise GuestError(f"{self.path}: debugfs could not write {name}; is the image full?")

    def mkdir(self, name: str, permissions: int) -> None:
        self._change(f"mkdir {name}")
        self._own(name, 0o040000 | permissions, 0)

    def _own(self, name: str, mode: int, group: int) -> None:
        self._change(f"sif {name} mode 0{mode:o}", f"sif {name} uid 0", f"sif {name} gid {group}")

    def _change(self, *commands: str) -> None:
        run_tool(["debugfs", "-w", "-f", "-", str(self.path)], given="".join(line + "\n" for line in commands))

    def check(self) -> None:
        """Repairs what the journal has not settled; GuestError when the file system is not sound."""
        run_tool(["e2fsck", "-f", "-p", str(self.path)], fine=(0, 1))

    def resize(self, size: int) -> None:
        """Makes disk and file system so many bytes large."""
        least = self.path.stat().st_size
        if size < least:
            raise GuestError(f"--size {size}b: what is on the disk needs at least {-(-least >> 20)}M")
        self.check()
        os.truncate(self.path, size)
        run_tool(["resize2fs", str(self.path)])
