"""Run a command of layerbank as a user would type it: in this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner, Result
from photos import TINY_MODEL, VIT_TINY

from layerbank import cli
from layerbank.cache.writing.locking import LockOwner, read_owner, worker_file

ROOT = Path(__file__).parent.parent

MODEL = ("--model", TINY_MODEL, "--weights", "random", "--image-size", "32", "--workers", "0", "--batch-size", "16")
VIT = ("--model", VIT_TINY, *MODEL[2:])


REPEATED = ("--allow-code", "--model", "--split", "--weights")  # options that some command takes several times


def run(*arguments: object) -> Result:
    """`layerbank ARGUMENTS...`, where an option of a shared list of arguments may be given again to change it.

    Any error that is not ours is raised. Ours is the context of the result's exception.
    """
    return run_as_typed(*changed(arguments))


def changed(arguments: Sequence[object]) -> list[str]:
    """Arguments in which an option that comes again with another value has replaced the earlier one.

    >>> changed(["probe", "--seed", 0, "--json", "--seed", 1])
    ['probe', '--json', '--seed', '1']
    """
    texts = [str(argument) for argument in arguments]
    last = {text: place for place, text in enumerate(texts) if text.startswith("--") and text not in REPEATED}
    dropped: set[int] = set()
    for place, text in enumerate(texts):
        if last.get(text, place) != place and not texts[place + 1].startswith("--"):
            dropped |= {place, place + 1}
    return [text for place, text in enumerate(texts) if place not in dropped]


def run_as_typed(*arguments: object) -> Result:
    """`layerbank ARGUMENTS...` as `run`, with all that is given."""
    refused: list[Exception] = []
    exit_code_of = cli._exit_code

    def remember(error: Exception) -> int:
        refused.append(error)
        return exit_code_of(error)

    with patch.object(cli, "_exit_code", remember):  # click drops what a SystemExit came from
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], catch_exceptions=False)
    if refused and result.exception is not None:
        result.exception.__context__ = refused[-1]
    return result


def start(*arguments: object, in_a_group_of_its_own: bool = False, **environment: str) -> subprocess.Popen[str]:
    """`layerbank ARGUMENTS...` in a process of its own, or as a terminal starts it: in a group that gets its Ctrl-C."""
    command = [sys.executable, "-m", "layerbank", *changed(arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=in_a_group_of_its_own,
    )


def wait_until_at_work(command: subprocess.Popen[str], store: Path, num_workers: int = 2) -> LockOwner:
    """Until one of the workers has taken blocks: on a busy machine the first may have done everything before the next begins."""
    deadline = time.monotonic() + 240
    while True:
        for index in range(num_workers):
            owner = read_owner(worker_file(store, index))
            if owner is not None and owner.blocks:
                return owner
        assert time.monotonic() < deadline
        assert command.poll() is None, command.communicate()
        time.sleep(0.005)
