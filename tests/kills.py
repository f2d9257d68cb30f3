"""Kill work at a moment or before a call that changes the disk, in a fork of a process that has no threads and costs little."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_program(program: str, *arguments: object) -> Any:
    """The JSON that a program prints, in an interpreter of its own that finds the modules of this folder."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{program}"]
    result = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def is_killed(work: Callable[[], object], *, at_call: int | None = None, after_s: float | None = None) -> bool:
    """Do the work in a fork, to its end or until it is killed; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            os.fsync = lambda fd: None  # nobody cuts the power
            if at_call is not None:
                die_at_call(at_call)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def die_at_call(number: int) -> None:
    """SIGKILL to this process just before its call of this number, from 0, that changes the disk."""
    calls = iter(range(10**9))

    def deadly(call: Any) -> Any:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return counted

    for name in ("write", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "ftruncate"):
        setattr(os, name, deadly(getattr(os, name)))
