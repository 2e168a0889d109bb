"""Where the cache is, and that a start does not compile Python's sources again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import COMMAND, ROOT

from mem.cachedir import cache_directory


def test_it_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARTBEAT_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    monkeypatch.setenv("HOME", "/three")
    assert cache_directory() == Path("/one")
    monkeypatch.delenv("HARTBEAT_CACHE")
    assert cache_directory() == Path("/two/hartbeat")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path("/three/.cache/hartbeat")


def kept(cache: Path) -> list[str]:
    """Names of our modules whose bytecode is in the cache."""
    return sorted(path.name.split(".")[0] for path in cache.glob("bytecode/**/smp/*.pyc"))


def start(cache: Path, **more: str) -> None:
    """The shortest start, told to write no bytecode beside the sources."""
    environment = {**os.environ, "HARTBEAT_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1", **more}
    environment.pop("PYTHONPYCACHEPREFIX", None)
    subprocess.run([*COMMAND, "-version"], cwd=ROOT, env=environment, check=True, capture_output=True)


def test_bytecode_is_kept_where_python_is_told_to_keep_none(tmp_path: Path) -> None:
    start(tmp_path)
    assert {"cli", "options", "config"} <= set(kept(tmp_path))
    assert (tmp_path / "bytecode").stat().st_mode & 0o777 == 0o700
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("bytecode/**/*.pyc")}
    start(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("bytecode/**/*.pyc")} == written


def test_it_is_not_executed_from_where_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "bytecode").mkdir()
    (tmp_path / "bytecode").chmod(0o777)
    start(tmp_path)
    assert kept(tmp_path) == []


def test_no_cache_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    start(tmp_path / "file")


def test_what_python_does_by_itself_stays(tmp_path: Path) -> None:
    code = "import sys; from mem.cachedir import keep_bytecode; keep_bytecode(); print(sys.pycache_prefix)"
    for more, printed in (
        ({"PYTHONDONTWRITEBYTECODE": ""}, "None"),
        ({"PYTHONPYCACHEPREFIX": "/elsewhere"}, "/elsewhere"),
    ):
        environment = {**os.environ, "HARTBEAT_CACHE": str(tmp_path), **more}
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True
        )
        assert result.stdout.decode().strip() == printed
    assert not (tmp_path / "bytecode").exists()
