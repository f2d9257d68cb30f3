"""One writer a store, and a killed one never blocks the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from messages import raises

from layerbank.cache import StoreLockedError
from layerbank.cache.writing.locking import LockOwner, StoreLock, is_locked, lock_file, read_owner

ROOT = Path(__file__).parent.parent
# a writer with a decode worker: the worker was forked while the lock was held, and outlives a killed parent for a while
OWNER_WITH_WORKER = """
import sys
import os, time
from pathlib import Path
from layerbank.cache.writing.locking import StoreLock
StoreLock(Path(sys.argv[1])).acquire()
if os.fork() == 0:
    os.close(1)
    time.sleep(1.5)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_workers_of_a_killed_owner_are_waited_for(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    owner = subprocess.Popen([sys.executable, "-c", OWNER_WITH_WORKER, str(store)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"held\n"
    owner.stdout.close()
    owner.kill()
    owner.wait()
    lock = StoreLock(store)
    started = time.monotonic()
    lock.acquire()
    assert time.monotonic() - started < 10
    lock.release()


def test_the_owner_is_named_while_the_lock_is_held_and_no_longer(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / "a.zarr")
    lock.acquire()
    owner = read_owner(lock_file(tmp_path / "a.zarr"))
    assert owner is not None
    assert (owner.pid, owner.is_gone) == (os.getpid(), False)
    assert is_locked(tmp_path / "a.zarr")
    lock.release()
    assert read_owner(lock_file(tmp_path / "a.zarr")) is None
    assert not is_locked(tmp_path / "a.zarr")


def test_a_lock_without_a_name_is_still_a_lock(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / "a.zarr")
    lock.acquire()
    lock_file(tmp_path / "a.zarr").write_text("not a name")
    with raises("cache.store_locked_by_unknown", StoreLockedError, store=tmp_path / "a.zarr"):
        StoreLock(tmp_path / "a.zarr").acquire()
    lock.release()


def test_the_name_that_a_killed_owner_left_blocks_no_writer(tmp_path: Path) -> None:
    left = {"pid": 1, "host": "another machine", "since": 0.0, "command": "layerbank extract"}
    lock_file(tmp_path / "a.zarr").write_text(json.dumps(left))
    assert not is_locked(tmp_path / "a.zarr")
    lock = StoreLock(tmp_path / "a.zarr")
    lock.acquire()
    lock.release()


def test_an_owner_on_another_machine_counts_as_alive() -> None:
    assert not LockOwner(pid=2**22 + 1, host="another machine", since=0.0, command="").is_gone
