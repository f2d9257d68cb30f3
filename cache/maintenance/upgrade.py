"""Make a store of format 2 from one of format 1, without its images and without its model.

The decision taken here: nothing is changed in place. The new store is made whole beside its place from everything that is sound in
the old one, checked, and renamed; only then the old one is deleted, and only if everything in it was taken along. Chunk files of
tokens are hard links, so they keep their bytes and take no space; on file systems without links they are copied. Killed at any
moment, the same call goes on: a new store is recognised by the fingerprint of the old one, which it keeps as an attribute.

The hashes stay those of rule 1. A row block that was not committed has no hashes, and its rows cannot be found again.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import google_crc32c

from ..atomic_files import storage_errors, sync_folder, write_file
from ..damage import Damage, chunk_damage, quick_damage, require_sound
from ..errors import CacheError, DamagedStoreError, NotWritableError, SpecError
from ..format import CHECKSUM_BYTES, create_skeleton, token_array
from ..header import FORMAT_VERSION, HEADER_FILE, Header, read_header, write_header
from ..journal import Journal, read_journal, rewrite_journal
from ..reader import StoreFiles
from ..spec import StoreSpec
from ..targets import LABEL, list_targets, write_target
from ..writing.locking import StoreLock, is_locked, lock_file, worker_files
from ..writing.resume import remove_store, temporary_folders
from .catalog import find_stores
from .format1_content import FINGERPRINT, Content, read_content
from .verify import verify_store

_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_OLD_NAME = re.compile(r"-([0-9a-f]{8})\.zarr$")


@dataclass(frozen=True, kw_only=True)
class Upgrade:
    """The result of an upgrade.

    Args:
        store: the store of format 2.
        num_rows: N.
        num_rows_left_behind: rows whose row block was not committed, or is damaged; their tokens have to be computed again.
        damages: what was not sound in the old store and was not taken along; the old store is kept if there is any.
    """

    store: Path
    num_rows: int
    num_rows_left_behind: int
    damages: tuple[Damage, ...] = ()


def upgrade_store(path: str | Path, root: str | Path | None = None) -> Upgrade:
    """Make the store of format 2 of a store of format 1, then delete the old one. Repeated, it goes on and ends the same.

    Args:
        path: a store of format 1.
        root: the cache folder of the new store; None is the one that the old store lies in.

    Raises:
        SpecError: the store has another format.
        StoreMissingError, NotAStoreError, NewerStoreError, DamagedStoreError: there is no store whose header can be read.
        StoreLockedError: a process writes it.
        StorageFullError, NotWritableError: the disk refuses; the old store is as it was.
    """
    try:
        return _upgrade(Path(path), cache_of(Path(path), 1) if root is None else Path(root))
    except NotWritableError as error:
        raise NotWritableError("cache.upgrade_not_writable", path=error.where, reason=error.got) from error


def _upgrade(old: Path, root: Path) -> Upgrade:
    if not old.exists() and (done := _find_upgraded(old, root)):
        remove_leftovers_of(old, root)
        return done
    if (version := read_header(old).format) != 1:
        raise SpecError("cache.not_old_format", store=old, expected=1, got=version)
    lock = StoreLock(old)
    lock.acquire()
    try:
        with storage_errors(old):
            content = read_content(StoreFiles.read(old), read=not _can_link(old, root))
            spec, is_there = _choose_place(root, content)
            if not is_there:
                _make_store(spec, root, old, content)
            if not content.damages:
                delete_with_folders(old, root)
    finally:
        lock.release()
    num_left = _num_rows_left_behind(content.header, content.journal)
    return Upgrade(
        store=spec.path(root), num_rows=spec.num_rows, num_rows_left_behind=num_left, damages=content.damages
    )


def find_format1(root: str | Path) -> list[Path]:
    """The stores of format 1 under a folder, by path, and those among their folders whose header is damaged."""
    found = []
    for path in find_stores(Path(root)):
        try:
            is_old = read_header(path).format == 1
        except DamagedStoreError:
            is_old = len(path.relative_to(root).parts) == 3  # <dataset>/<split>/<store>
        except CacheError:
            is_old = False
        if is_old:
            found.append(path)
    return found


def remove_leftovers(root: str | Path) -> None:
    """Remove what killed upgrades left of deleted stores of format 1: half-deleted folders, locks, the folders around these.

    Raises:
        NotWritableError: the disk refuses.
    """
    for file in Path(root).glob("*/*/*.zarr.lock"):
        store = file.with_name(file.name.removesuffix(".lock"))
        if not store.exists() and not is_locked(store):
            remove_leftovers_of(store, Path(root))
    # killed between the lock and its folders, which are empty and named as the new store is
    names = [store.name for store in Path(root).glob("*/*.zarr")]
    for folder in [*Path(root).glob("*/*"), *Path(root).glob("*")]:
        named = "-".join(folder.relative_to(root).parts)
        if folder.is_dir() and any(name.startswith(f"{named}-") for name in names):
            _remove_empty_folders(folder / "store", Path(root))


def cache_of(store: Path, version: int) -> Path:
    """The cache folder that a store of a format lies in: those of format 1 lie one folder deeper."""
    folder = Path(os.path.abspath(store)).parent.parent
    return folder.parent if version == 1 else folder


def delete_with_folders(store: Path, root: Path) -> None:
    """Delete a store with its lock, and the folders between it and `root` that are empty then; the caller holds the lock."""
    for left_behind in temporary_folders(store):
        shutil.rmtree(left_behind, ignore_errors=True)
    remove_store(store)
    for file in [*worker_files(store).values(), lock_file(store)]:
        file.unlink(missing_ok=True)
    _remove_empty_folders(store, root)


def _remove_empty_folders(store: Path, root: Path) -> None:
    inside = Path(os.path.abspath(root))
    for folder in Path(os.path.abspath(store)).parents:
        if inside not in folder.parents:
            break
        with suppress(OSError):  # it is not empty, or it is gone already
            folder.rmdir()


def _num_rows_left_behind(header: Header, journal: Journal) -> int:
    grid = header.block_grid
    return sum(len(grid.block(block)) for block in range(grid.num_blocks) if block not in journal.entries)


def _choose_place(root: Path, content: Content) -> tuple[StoreSpec, bool]:
    """The spec whose path is free for the new store, or holds it already: stores that differ in tap or labels have equal rows."""
    places = ((spec, spec.path(root)) for spec in content.header.spec.numbered())
    return next((spec, path.exists()) for spec, path in places if not path.exists() or _holds(path, content))


def _holds(path: Path, content: Content) -> bool:
    """Whether a store is this one, upgraded before, and sound; reads it."""
    try:
        files = StoreFiles.read(path)
    except CacheError:
        return False
    header, expected = files.header, content.header
    is_same = (
        header.attributes.get(FINGERPRINT) == expected.attributes[FINGERPRINT] and header.static == expected.static
    )
    has_all = (
        all(
            entry.checksums.items() <= files.journal.entries[block].checksums.items()
            for block, entry in content.journal.entries.items()
            if block in files.journal.entries
        )
        and content.journal.entries.keys() <= files.journal.entries.keys()
    )
    has_target = content.target is None or LABEL in list_targets(path)
    return is_same and has_all and has_target and not verify_store(path)


def _make_store(spec: StoreSpec, root: Path, old: Path, content: Content) -> None:
    """Make the new store beside its place, check it, and rename it."""
    new = spec.path(root)
    lock = StoreLock(new)
    lock.acquire()
    try:
        with storage_errors(new):
            folder, _ = temporary_folders(new)
            shutil.rmtree(folder, ignore_errors=True)
            known = content.header.arrays
            arrays, metadata = create_skeleton(folder, spec, [entry.spec for entry in known.values()], content.static)
            assert {n: e.chunk_rows for n, e in arrays.items()} == {n: e.chunk_rows for n, e in known.items()}
            header = replace(content.header, spec=spec, metadata=metadata)
            _take_chunks(old, folder, header, content)
            rewrite_journal(folder, content.journal)
            if content.target is not None:
                write_target(folder, LABEL, content.target, num_rows=spec.num_rows)
            write_header(folder, header)
            _require_whole(folder, header, content.journal)
            os.replace(folder, new)
            for parent in [*new.parents][:2]:  # the model's folder and the root: either may be new
                sync_folder(parent)
    finally:
        lock.release()


def _take_chunks(old: Path, folder: Path, header: Header, content: Content) -> None:
    """Link, or copy, the chunk files of every committed row block."""
    for name, old_name in content.names.items():
        array = token_array(header, name)
        for block, entry in content.journal.entries.items():
            for chunk in array.grid.chunks_of(block) if name in entry.checksums else ():
                file = old / old_name / array.file_name(chunk)
                checksum = content.journal.checksum(name, chunk, array.grid)
                if not _link(file, array.file(folder, chunk)) and not _copy(file, array.file(folder, chunk), checksum):
                    require_sound(old, [replace(chunk_damage(array, chunk, "altered"), file=f"{old_name}/{file.name}")])
        sync_folder(folder / name)


def _can_link(old: Path, root: Path) -> bool:
    """Whether files of the old store can have a second name under `root`."""
    trial = root / ".layerbank-link"
    root.mkdir(parents=True, exist_ok=True)
    trial.unlink(missing_ok=True)
    try:
        return _link(old / HEADER_FILE, trial)
    finally:
        trial.unlink(missing_ok=True)


def _link(file: Path, new: Path) -> bool:
    try:
        os.link(file, new)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _copy(file: Path, new: Path, checksum: str | None) -> bool:
    """Copy a chunk file; False if its data are not those of the journal."""
    data = file.read_bytes()
    if f"{google_crc32c.value(data[:-CHECKSUM_BYTES]):08x}" != checksum:
        return False
    write_file(new, data)
    return True


def _require_whole(folder: Path, header: Header, journal: Journal) -> None:
    """Read back what was made: header, journal, static arrays, the digest of the rows, and the size of every chunk."""
    files = StoreFiles.read(folder)
    is_same = files.header.render() == header.render() and read_journal(folder).entries == journal.entries
    damages = list(quick_damage(folder, files.header, files.journal, list(header.arrays)))
    if not is_same or files.rows.digest != header.spec.rows_digest:
        damages.append(Damage(file=".", problem="other content than was written"))
    require_sound(folder, damages)


def _find_upgraded(old: Path, root: Path) -> Upgrade | None:
    """The store that was made from one that is gone: the name of the old one ends with the first digits of its fingerprint."""
    digits = _OLD_NAME.search(old.name)
    for path in sorted(root.glob("*/*.zarr")) if digits else ():
        with suppress(CacheError):
            header = read_header(path)
            fingerprint = str(header.attributes.get(FINGERPRINT, ""))
            if header.format == FORMAT_VERSION and digits and fingerprint.startswith(digits[1]):
                num_left = _num_rows_left_behind(header, read_journal(path))
                return Upgrade(store=path, num_rows=header.spec.num_rows, num_rows_left_behind=num_left)
    return None


def remove_leftovers_of(store: Path, root: Path) -> None:
    """Remove what a killed process left of a store that it deleted."""
    if not lock_file(store).exists():
        _remove_empty_folders(store, root)
        return
    lock = StoreLock(store)
    lock.acquire()
    try:
        with storage_errors(store):
            delete_with_folders(store, root)
    finally:
        lock.release()
