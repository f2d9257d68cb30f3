"""A refusal of the system is an error of ours, whichever library reports it; anything else is a bug and keeps its traceback."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import MODEL, run
from messages import refuses
from photos import write_photos

from layerbank import cli
from layerbank.errors import WorkError
from layerbank.system_errors import system_error

FULL = os.strerror(errno.ENOSPC)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (OSError(errno.ENOSPC, FULL), "layerbank.disk_full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "layerbank.disk_full"),
        (OSError(f"Can't write data (file write failed: errno = 28, error message = '{FULL}')"), "layerbank.disk_full"),
        (RuntimeError(f"Error while serializing: I/O error: {FULL} (os error 28)"), "layerbank.disk_full"),
        (caused(ValueError("not saved"), OSError(errno.EFBIG, "File too large")), "layerbank.file_too_large"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.zarr"), "layerbank.too_many_open_files"),
        (ImportError("a.so: cannot open shared object file: Too many open files"), "layerbank.too_many_open_files"),
        (MemoryError(), "layerbank.out_of_memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"),
            "layerbank.out_of_memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "layerbank.out_of_device_memory"),
        (ImportError("a.so: failed to map segment from shared object"), "layerbank.out_of_memory"),
        (RuntimeError("can't start new thread"), "layerbank.out_of_threads"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "layerbank.name_too_long"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "layerbank.file_error"),
    ],
)
def test_a_refusal_of_the_system_is_recognised(error: Exception, key: str) -> None:
    found = system_error(error)
    assert found is not None
    assert found.key == key
    assert cli._exit_code(found) == (2 if key == "layerbank.name_too_long" else 1)


def test_a_bug_keeps_its_traceback() -> None:
    assert system_error(caused(RuntimeError("a bug"), ValueError("another"))) is None
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "a")
    assert system_error(caused(KeyError("a bug while it was handled"), missing)) is None
    assert system_error(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


@pytest.mark.parametrize("arguments", [["--model", ""], ["--model="], ["--cache", "  "], ["--split="], ["--probe", ""]])
def test_an_empty_value_is_refused(arguments: list[str]) -> None:
    refused = run("probe", "--data", "folder:photos", *arguments)
    refuses(refused, "layerbank.empty_value", where=arguments[0].rstrip("="))


def test_a_value_of_any_length_makes_a_short_message() -> None:
    error = WorkError("layerbank.file_error", place="x" * 5000, reason="y" * 112_000)
    assert len(str(error)) < 2500
    assert "(5,000 characters)" in error.where
    assert error.values["place"] == "x" * 5000
    result = CliRunner().invoke(cli.main, ["extract", "--weights-seed", "9" * 5000])
    assert (result.exit_code, len(result.stderr) < 1500) == (2, True)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize(
    ("limit", "value", "shown"),
    [
        (resource.RLIMIT_FSIZE, 4096, "ulimit -f"),
        (resource.RLIMIT_NOFILE, 64, ""),  # these suffice
        (resource.RLIMIT_AS, 600_000_000, "ulimit -v"),
    ],
)
def test_a_limit_of_the_shell_ends_a_command_without_a_traceback(
    tmp_path: Path, limit: int, value: int, shown: str
) -> None:
    write_photos(tmp_path / "photos", {"train": 4, "test": 2})
    command = [sys.executable, "-m", "layerbank", "extract", *MODEL, "--data", "folder:photos"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
    )
    assert ended.returncode == bool(shown), ended.stderr
    assert "Traceback" not in ended.stderr
    assert shown in ended.stderr
