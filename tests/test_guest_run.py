"""`--run COMMAND` without a guest: the words of the command line, the folder that carries command and status."""

import os
from pathlib import Path

import pytest

from smp import guest, guest_run, options
from smp.config import SerialConfig
from smp.config_check import check


@pytest.mark.parametrize(
    ("words", "command", "others"),
    [
        (["-smp", "2"], None, ["-smp", "2"]),
        (["--run", "a b", "-smp", "2"], "a b", ["-smp", "2"]),
        (["-smp", "2", "--run=a=b --run"], "a=b --run", ["-smp", "2"]),
        (["-run", "-x"], "-x", []),
        (["--run="], "", []),
    ],
)
def test_the_command_is_taken_out_of_the_options(words: list[str], command: str | None, others: list[str]) -> None:
    assert guest_run.split_run(words) == (command, others)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run"], "--run: needs a value"),
        (["--run", "a", "--run", "b"], "--run b: is given twice"),
        (["--run", "a", "-kernel", "k"], "leave -kernel out"),
        (["--run", "a", "--bios=b"], "leave -bios out"),
        (["--run", "a", "-initrd", "i"], "leave -initrd out"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guest.main(["boot", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hartbeat: ") and err.count("\n") == 1 and said in err


def test_the_options_make_a_machine(tmp_path: Path) -> None:
    folder = tmp_path / "with, comma"
    folder.mkdir()
    config = options.parse(["-kernel", __file__, *guest_run.run_options(str(folder), ["-share", "x"])])
    assert config.fsdevs[0].path == folder and not config.reboot
    assert config.serials == (SerialConfig("fd", "2"),)
    assert config.chardevs[0].kind == "fd" and config.chardevs[0].arg == "1"
    check(config)
    assert options.parse(["-kernel", "k", *guest_run.run_options("f", ["-serial", "null"]), "-serial", "null"])
    assert "-append" not in guest_run.run_options("f", ["-append", "x"])


def test_help_has_it_beside_the_emulators_options(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: None)
    guest.main(["boot", "-h"])
    assert "--run COMMAND" in capsys.readouterr().out
    assert max(map(len, guest_run.HELP.splitlines())) <= 110


def started(folder: list[Path], status: int = 0, write: bytes | None = None):
    """In the emulator's place: remembers the folder and writes what a guest would."""

    def start(words: list[str]) -> int:
        place = Path(next(word for word in words if word.startswith("local,")).split(",")[1].removeprefix("path="))
        folder.append(place)
        folder.append(Path(os.fsdecode((place / "command").read_bytes())))
        if write is not None:
            (place / "status").write_bytes(write)
        return status

    return start


@pytest.mark.parametrize("command", ["true", "a 'b' \"c\" $(d) \\ \n#", "x" * 100_000, "\udcff", ""])
def test_a_command_travels_as_it_is(command: str) -> None:
    seen: list[Path] = []
    assert guest_run.run(command, [], started(seen, write=b"7\n"), list) == 7
    assert os.fspath(seen[1]) == os.fspath(Path(command + "\n"))
    assert not seen[0].exists()


@pytest.mark.parametrize("written", [None, b"", b"seven\n"])
def test_a_guest_that_ends_early_is_reported(written: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert guest_run.run("true", [], started([], write=written), list) == 1
    assert capsys.readouterr().err == "hartbeat: --run: the guest ended before the command did\n"


def test_the_emulators_own_failure_counts_more() -> None:
    assert guest_run.run("true", [], started([], status=130, write=b"0\n"), list) == 130


def test_a_status_is_no_way_to_the_hosts_files(tmp_path: Path) -> None:
    (tmp_path / "number").write_bytes(b"5\n")
    os.symlink(tmp_path / "number", tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    assert guest_run.read_status(tmp_path / "number") == 5
    assert guest_run.read_status(tmp_path / "link") is None
    assert guest_run.read_status(tmp_path / "fifo") is None
