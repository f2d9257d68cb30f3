"""Finished banks of sweeps that are under way, so that a sweep that was killed goes on with the banks that are missing.

One file a bank, `RUNS/<data set>/<store>/.sweeps/<digest>.npz`: the scores and curves it left, or, of a search for levels, which
held-out images a set of them got right. The digest is of everything that
could change them: the train store, the protocol, how tokens and training lie in memory, versions of torch and of this package, the
head, its blocks and the settings trained together. So a file is found by the sweep that would compute the same numbers, for
whichever probe, and by no other. Files appear whole or not at all. Each names the rows it is kept for and is removed when all of
them are written; what an abandoned sweep left, files that no sweep has found or kept for `ABANDONED_S`, goes with the next such
row. A sweep that lives renews its own with every bank, and has read what it needs of them: if they were removed all the same,
only its restart after a kill would suffer.
"""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerbank.probes import BankKey, BankScores, Candidate, LearningCurves, Setting

from .results import key_of

ABANDONED_S = 30 * 24 * 3600.0
UNREADABLE = (FileNotFoundError, EOFError, zipfile.BadZipFile, ValueError, KeyError)


class SweepJournal:
    """A `layerbank.probes.Journal` of files.

    Args:
        folder: of the journal; made when there is something to keep.
        setting: what the scores of all banks depend on: the train store, the protocol, the device.
        describe: what those of one head depend on beside that: how its tokens and its training lie in memory.
        rows: keys of the rows that this leads to.
    """

    def __init__(
        self,
        folder: Path,
        setting: dict[str, Any],
        describe: Callable[[Candidate], dict[str, Any]],
        rows: Sequence[str],
    ) -> None:
        self._folder, self._describe, self._rows = folder, describe, list(rows)
        self._used: set[Path] = set()
        self._setting = {**setting, "versions": {name: version(name) for name in ("layerbank", "torch")}}

    def find(self, key: BankKey) -> BankScores | None:
        """What was kept of a bank; None if it was not, or cannot be read."""
        path = self._path(key)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                kept = {name: torch.from_numpy(arrays[name]) for name in ("accuracies", "steps", "losses", "lrs")}
        except UNREADABLE:
            return None
        self._renew(path)
        curves = LearningCurves(steps=kept["steps"], losses=kept["losses"], lrs=kept["lrs"])
        return BankScores(accuracies=kept["accuracies"], curves=curves)

    def keep(self, key: BankKey, scores: BankScores) -> None:
        """Write the bank's file and wait until it is on the disk."""
        path = self._path(key)
        self._keep(
            path,
            accuracies=scores.accuracies.numpy(),
            steps=scores.curves.steps.numpy(),
            losses=scores.curves.losses.numpy(),
            lrs=scores.curves.lrs.numpy(),
        )

    def find_hits(self, candidate: Candidate, setting: Setting) -> NDArray[np.bool_] | None:
        """[N] which held-out images a probe of a search got right; None if it was not kept, or cannot be read."""
        path = self._path(_of_search(candidate, setting))
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                hits: NDArray[np.bool_] = arrays["hits"]
        except UNREADABLE:
            return None
        self._renew(path)
        return hits

    def keep_hits(self, candidate: Candidate, setting: Setting, hits: NDArray[np.bool_]) -> None:
        """Write them and wait until they are on the disk."""
        self._keep(self._path(_of_search(candidate, setting)), hits=hits)

    def _keep(self, path: Path, **arrays: NDArray[Any]) -> None:
        content = io.BytesIO()
        np.savez(content, rows=np.array(self._rows), **arrays)  # type: ignore[arg-type]  # as in row_folder.py
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
        self._renew(path)

    def _renew(self, path: Path) -> None:
        """Say that this sweep lives and needs this file and those before it."""
        self._used.add(path)
        for used in self._used:
            with suppress(FileNotFoundError):
                os.utime(used)

    def _path(self, key: BankKey) -> Path:
        return (
            self._folder
            / f"{key_of({**self._setting, 'memory': self._describe(key.candidate), 'bank': asdict(key)})}.npz"
        )


def clear_finished(folder: Path, finished: Collection[str]) -> None:
    """Remove what is kept for rows that are written, all of them, and what nobody has needed for long.

    Args:
        folder: of journals.
        finished: keys of rows.
    """
    if not folder.exists():
        return
    oldest_s = time.time() - ABANDONED_S
    for path in folder.glob("*.npz"):  # half written ones too
        with suppress(*UNREADABLE):  # among them: its sweep has just removed it
            if path.stat().st_mtime < oldest_s or _rows_of(path) <= set(finished):
                path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        folder.rmdir()


def _rows_of(path: Path) -> set[str]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        return set(arrays["rows"].tolist())


def _of_search(candidate: Candidate, setting: Setting) -> BankKey:
    return BankKey(candidate=candidate, settings=(setting,), num_steps=0)  # no bank of a grid: those have steps


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all, also after the power is cut."""
    staging = path.with_name(f".{path.name}")
    with staging.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
    if os.name != "nt":  # folders cannot be opened there
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
