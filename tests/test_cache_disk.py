"""When the disk refuses: a clear error, and nothing that was committed is lost; on real file systems where we may mount."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from messages import raises, shows
from own_mounts import in_own_mounts
from token_stores import (
    append,
    make_arrays,
    make_spec,
    open_writer,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import NotWritableError, StorageFullError, check_writable, verify_store
from layerbank.cache.journal import read_journal

ROOT = Path(__file__).parent.parent
WRITE_AND_TELL = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from token_stores import *
from layerbank.cache import CacheError
from layerbank.cache.journal import read_journal
store = Path(sys.argv[1])
try:
    write_store(store, arrays=make_arrays(kinds=["cls"], width=512))
except CacheError as error:
    print(type(error).__name__, len(read_journal(store).entries) if store.exists() else 0, error)
"""


def test_a_real_full_disk_keeps_what_was_committed_and_goes_on_when_there_is_space(tmp_path: Path) -> None:
    disk, copy, program = tmp_path / "disk", tmp_path / "copy", tmp_path / "program.py"
    disk.mkdir()
    program.write_text(WRITE_AND_TELL)
    lines = in_own_mounts(
        """
        mount -t tmpfs -o size=1500k tmpfs "$2"
        "$1" "$4" "$2/a.zarr"
        mount -o remount,size=64m "$2"
        "$1" "$4" "$2/a.zarr"
        cp -r "$2/a.zarr" "$3"
        """,
        *(str(path) for path in (disk, copy, program)),
    )
    assert len(lines) == 1
    kind, num_blocks, message = lines[0].split(" ", 2)
    assert kind == "StorageFullError"
    assert 1 <= int(num_blocks) < 5
    assert shows(message, "cache.storage_full")
    assert "No space left on device" in message
    write_store(tmp_path / "b.zarr", arrays=make_arrays(kinds=["cls"], width=512))
    assert tree(copy) == tree(tmp_path / "b.zarr")


def test_a_disk_too_small_for_even_the_empty_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "program.py").write_text(WRITE_AND_TELL)
    script = 'mount -t tmpfs -o size=32k tmpfs "$2"; "$1" "$3" "$2/a.zarr"'
    lines = in_own_mounts(script, str(tmp_path / "disk"), str(tmp_path / "program.py"))
    assert lines[0].startswith("StorageFullError 0 ")


def test_a_real_read_only_disk_says_so(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "program.py").write_text(WRITE_AND_TELL)
    script = 'mount -t tmpfs -o ro tmpfs "$2"; "$1" "$3" "$2/shapes/a.zarr"'
    lines = in_own_mounts(script, str(tmp_path / "disk"), str(tmp_path / "program.py"))
    assert lines[0].startswith("NotWritableError 0 ")
    assert shows(lines[0], "cache.not_writable")
    assert "Read-only file system" in lines[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with raises("cache.not_writable", NotWritableError) as refused:
        write_store(tmp_path / "a.zarr")
    assert refused.error.values["reason"].startswith("Permission denied")


def test_a_file_where_a_folder_should_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "caches").write_text("mine")
    with raises("cache.file_in_the_way", NotWritableError, file=tmp_path / "caches"):
        check_writable(tmp_path / "caches" / "photos")


def test_a_file_size_limit_is_named_and_harms_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    wide = make_arrays(kinds=["cls"], width=512)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with raises("cache.file_size_limit", StorageFullError) as refused:
            write_store(tmp_path / "a.zarr", arrays=wide)
        assert refused.error.values["reason"].startswith("File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write_store(tmp_path / "a.zarr", arrays=wide)
    write_store(tmp_path / "b.zarr", arrays=wide)
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


@pytest.mark.parametrize(
    ("call", "number"),
    [("write", 0), ("write", 3), ("write", 17), ("replace", 1), ("fsync", 2), ("fsync", 8)],
)
def test_a_block_refused_halfway_is_sent_again_to_the_same_writer(tmp_path: Path, call: str, number: int) -> None:
    """The disk takes a part of a write, then refuses; later there is space again, and the writer is still open."""
    write_store(tmp_path / "b.zarr")
    original = getattr(os, call)
    calls = iter(range(10**9))

    def refusing(*arguments: Any) -> Any:
        if next(calls) == number:
            if call == "write":
                original(arguments[0], bytes(arguments[1])[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    store = tmp_path / "a.zarr"
    with open_writer(store, make_spec(), make_arrays()) as writer:
        for batch in writer.pending()[:4]:
            append(writer, batch)
        with pytest.MonkeyPatch.context() as patch, raises("cache.storage_full", path=store):
            patch.setattr(os, call, refusing)
            for batch in writer.pending():
                append(writer, batch)
        assert list(read_journal(store).entries) == [0]
        assert read_journal(store).bad_lines == ()
        assert not list(store.rglob("aside*"))
        assert verify_store(store) == []
        for batch in writer.pending():
            append(writer, batch)
        writer.complete()
    assert tree(store) == tree(tmp_path / "b.zarr")


def test_a_journal_line_that_did_not_fit_is_taken_back(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    original = os.write

    def refusing(fd: int, data: Any) -> int:
        if bytes(data[:2]) == b'{"' and len(data) > 100:
            original(fd, bytes(data)[:50])
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return original(fd, data)

    with open_writer(store, make_spec(), make_arrays()) as writer:
        with pytest.MonkeyPatch.context() as patch, raises("cache.storage_full", path=store):
            patch.setattr(os, "write", refusing)
            for batch in writer.pending():
                append(writer, batch)
        for batch in writer.pending():
            append(writer, batch)
        assert (read_journal(store).bad_lines, len(read_journal(store).entries)) == ((), 5)
