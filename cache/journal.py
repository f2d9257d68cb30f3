"""The journal: which row blocks of which arrays are committed, with the CRC-32C of every chunk.

Each worker appends to a file of JSON lines of its own; one line per committed row block, appended and fsynced after the
chunk files are in place. Several lines may concern one row block (arrays added later); together they are its record. A
line carries its own checksum: a killed writer leaves a torn last line, any other bad line is damage. When everything
requested is there, the journal is rewritten as one sorted file without times or process ids, so that a store has the
same bytes whatever its history.

The journal lies inside the folder of `content_hashes`, because Zarr never lists the folder of an array; at the root,
zarr would warn of an unknown object at every listing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from .atomic_files import replace_file, sync_folder, write_all
from .geometry import Grid

JOURNAL_FOLDER = "content_hashes/.journal"
WORKER_FILE = "worker-0.jsonl"  # written by the only writer of a store; the only one in a complete store
CHECKED_FILE = "checked"  # of an unfinished store, see `writing.checked_chunks`
STAGING_PREFIX = "aside~"  # files being written; the owner of the lock may remove them


@dataclass(frozen=True, kw_only=True)
class BatchNotes:
    """Notes on some rows, stored beside their tokens.

    Args:
        skipped: row -> reason, rows without usable tokens.
        saturated: array name -> number of values that the storage dtype could not hold.
        nonfinite: array name -> number of values that were not finite.
    """

    skipped: Mapping[int, str] = field(default_factory=dict)
    saturated: Mapping[str, int] = field(default_factory=dict)
    nonfinite: Mapping[str, int] = field(default_factory=dict)

    def merged(self, other: BatchNotes) -> BatchNotes:
        """The notes of both: counts add up, the first reason for a row stays."""
        return BatchNotes(
            skipped=dict(sorted({**other.skipped, **self.skipped}.items())),
            saturated=dict(sorted((Counter(self.saturated) + Counter(other.saturated)).items())),
            nonfinite=dict(sorted((Counter(self.nonfinite) + Counter(other.nonfinite)).items())),
        )

    def of_arrays(self, names: Iterable[str]) -> BatchNotes:
        """These notes without the counts of other arrays."""
        names = set(names)
        return BatchNotes(
            skipped=self.skipped,
            saturated={name: count for name, count in self.saturated.items() if name in names},
            nonfinite={name: count for name, count in self.nonfinite.items() if name in names},
        )

    def totals(self) -> dict[str, Any]:
        """The header's summary: the number of skipped rows, and the counts."""
        return {
            "num_skipped": len(self.skipped),
            "saturated": dict(self.saturated),
            "nonfinite": dict(self.nonfinite),
        }


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The record of one row block: array name -> CRC-32C of each of its chunks there, and notes."""

    block: int
    checksums: Mapping[str, tuple[str, ...]]
    notes: BatchNotes = field(default_factory=BatchNotes)

    def merged(self, other: Entry) -> Entry:
        return Entry(
            block=self.block,
            checksums={**self.checksums, **other.checksums},
            notes=self.notes.merged(other.notes),
        )

    def without(self, names: Collection[str]) -> Entry:
        """The entry without these arrays and their counts."""
        kept = {name: sums for name, sums in self.checksums.items() if name not in names}
        return Entry(block=self.block, checksums=kept, notes=self.notes.of_arrays(kept))

    def render(self) -> bytes:
        entry = {
            "block": self.block,
            "checksums": {name: list(sums) for name, sums in self.checksums.items()},
            "skipped": [[row, reason] for row, reason in sorted(self.notes.skipped.items())],
            "saturated": dict(self.notes.saturated),
            "nonfinite": dict(self.notes.nonfinite),
        }
        return _dump({"crc32c": f"{google_crc32c.value(_dump(entry)):08x}", "entry": entry}) + b"\n"


def parse_line(line: bytes) -> Entry | None:
    """The entry of a line, or None for a line that is not exactly as `Entry.render` writes it."""
    try:
        entry = json.loads(line)["entry"]
        parsed = Entry(
            block=entry["block"],
            checksums={name: tuple(sums) for name, sums in entry["checksums"].items()},
            notes=BatchNotes(
                skipped=dict(entry["skipped"]),
                saturated=entry["saturated"],
                nonfinite=entry["nonfinite"],
            ),
        )
        return parsed if parsed.render() == line and _has_right_types(parsed) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _has_right_types(entry: Entry) -> bool:
    """A line may come from anywhere, with the right checksum too."""
    notes = entry.notes
    numbers = [entry.block, *notes.skipped, *notes.saturated.values(), *notes.nonfinite.values()]
    texts = [*notes.skipped.values(), *(crc for sums in entry.checksums.values() for crc in sums)]
    are_numbers = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    return (
        are_numbers and all(type(one) is str for one in texts) and all(entry.checksums.values())
    )  # no array without chunks


@dataclass(frozen=True, kw_only=True)
class Journal:
    """The content of all journal files of a store.

    Args:
        entries: row block -> its record.
        bad_lines: lines that are not entries: file name, line number from 1, and whether the line ends its file without a
            newline, as a killed writer leaves one.
    """

    entries: dict[int, Entry] = field(default_factory=dict)
    bad_lines: tuple[tuple[str, int, bool], ...] = ()

    def add(self, entry: Entry) -> None:
        """Merge an entry with the record of its row block."""
        known = self.entries.get(entry.block)
        self.entries[entry.block] = entry if known is None else known.merged(entry)

    def holds(self, block: int, name: str) -> bool:
        entry = self.entries.get(block)
        return entry is not None and name in entry.checksums

    def of_store(self, names: Collection[str], grid: Grid) -> Journal:
        """The journal without row blocks, arrays and skipped rows that the store does not have."""
        entries = {}
        for block in (block for block in self.entries if block < grid.num_blocks):
            rows, entry = grid.block(block), self.entries[block]
            kept = entry.without(entry.checksums.keys() - set(names))
            skipped = {row: reason for row, reason in kept.notes.skipped.items() if row in rows}
            entries[block] = replace(kept, notes=replace(kept.notes, skipped=skipped))
        return replace(self, entries=entries)

    def checksum(self, name: str, chunk: int, grid: Grid) -> str | None:
        """The CRC-32C of a chunk, None if it is not committed."""
        block = grid.chunk(chunk).start // grid.block_rows
        chunks = grid.chunks_of(block)
        entry = self.entries.get(block)
        sums = entry.checksums.get(name, ()) if entry else ()
        return sums[chunk - chunks.start] if len(sums) == len(chunks) else None

    def blocks_with(self, names: Collection[str], num_blocks: int) -> NDArray[np.bool_]:
        """``[num_blocks]``, whether all of these arrays are committed in a row block."""
        held = np.zeros(num_blocks, dtype=np.bool_)
        wanted = set(names)
        for block, entry in self.entries.items():
            if block < num_blocks:
                held[block] = wanted <= entry.checksums.keys()
        return held

    def notes(self, names: Iterable[str]) -> BatchNotes:
        """The notes of all row blocks, with the counts of these arrays only."""
        notes = [self.entries[block].notes for block in sorted(self.entries)]
        skipped = {row: reason for one in notes for row, reason in one.skipped.items()}
        counts: dict[str, Counter[str]] = {"saturated": Counter(), "nonfinite": Counter()}
        for one in notes:
            counts["saturated"].update(one.saturated)
            counts["nonfinite"].update(one.nonfinite)
        sums = {field: dict(sorted(count.items())) for field, count in counts.items()}
        return BatchNotes(skipped=dict(sorted(skipped.items())), **sums).of_arrays(names)

    def render(self) -> bytes:
        """All entries as one sorted file."""
        return b"".join(self.entries[block].render() for block in sorted(self.entries))


def read_journal(store: Path) -> Journal:
    journal, seen = Journal(), set[bytes]()
    bad_lines: list[tuple[str, int, bool]] = []
    for file in sorted((store / JOURNAL_FOLDER).glob("worker-*.jsonl")):
        if not file.is_file():
            if os.path.lexists(file):  # a folder, a pipe or a link to nothing: `verify` reports it
                continue
            return read_journal(store)  # a writer has merged the files meanwhile: there are fewer now
        try:
            raw = file.read_bytes()
        except FileNotFoundError:
            return read_journal(store)
        for number, line in enumerate(raw.splitlines(keepends=True), start=1):
            if line in seen:  # its counts would add up
                continue
            if entry := parse_line(line):
                journal.add(entry)
                seen.add(line)
            else:
                bad_lines.append((file.name, number, not line.endswith(b"\n")))
    return replace(journal, bad_lines=tuple(bad_lines))


def journal_problems(store: Path, journal: Journal) -> list[tuple[str, str]]:
    """Journal files that a complete store does not have, and one that is not sorted: name and problem of each.

    Args:
        store: a store whose arrays are all complete.
        journal: what its files hold.
    """
    files = [file for file in sorted((store / JOURNAL_FOLDER).glob("worker-*.jsonl")) if file.is_file()]
    problems = [(file.name, "the journal of a worker that has ended") for file in files if file.name != WORKER_FILE]
    raw = b"".join(file.read_bytes() for file in files if file.name == WORKER_FILE)
    if not journal.bad_lines and raw != journal.render():
        problems.append((WORKER_FILE, "lines are missing, repeated or not in order"))
    return problems


def journal_file(store: Path, worker: int) -> Path:
    return store / JOURNAL_FOLDER / f"worker-{worker}.jsonl"


def append_entry(store: Path, entry: Entry, worker: int = 0) -> None:
    """Commit a row block: append one line and fsync."""
    file = journal_file(store, worker)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    size_bytes = os.fstat(fd).st_size
    try:
        write_all(fd, entry.render())
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, size_bytes)  # or the next line would be joined to a torn one
        raise
    finally:
        os.close(fd)


def cut_torn_line(store: Path, worker: int) -> None:
    """Remove the partial line that a killed worker with this index left, or the next line would be joined to it."""
    file = journal_file(store, worker)
    raw = file.read_bytes() if file.exists() else b""
    if raw and not raw.endswith(b"\n"):
        os.truncate(file, raw.rfind(b"\n") + 1)


def rewrite_journal(store: Path, journal: Journal) -> None:
    """Replace all journal files by the sorted journal, in one step."""
    folder = store / JOURNAL_FOLDER
    replace_file(folder / WORKER_FILE, journal.render(), folder / f"{STAGING_PREFIX}{WORKER_FILE}")
    for file in folder.glob("worker-*.jsonl"):
        if file.name != WORKER_FILE:
            file.unlink()
    sync_folder(folder)


def staging_files(store: Path) -> list[Path]:
    return sorted((store / JOURNAL_FOLDER).glob(f"{STAGING_PREFIX}*"))


def _dump(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
