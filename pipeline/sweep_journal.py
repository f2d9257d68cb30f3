"""Finished banks of sweeps that are under way, so that a sweep that was killed goes on with the banks that are missing.

One file a bank, `RUNS/<data set>/<store>/.sweeps/<digest>.npz`: the scores and curves it left. The digest is of everything that
could change them: the train store, the protocol, how tokens and training lie in memory, versions of torch and of this package, the
head, its blocks and the settings trained together. So a file is found by the sweep that would compute the same numbers, for
whichever probe, and by no other. Files appear whole or not at all. They are removed when the rows they led to are written, and
with them what an abandoned sweep left: files that no sweep has found or kept for `ABANDONED_S`. A sweep that lives renews its own
with every bank, and has read what it needs of them: if they were removed all the same, only its restart after a kill would suffer.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes import BankKey, BankScores, Candidate, LearningCurves

from .results import key_of

ABANDONED_S = 30 * 24 * 3600.0


class SweepJournal:
    """A `probes.Journal` of files.

    Args:
        folder: of the journal; made when there is something to keep.
        setting: what the scores of all banks depend on: the train store, the protocol, the device.
        describe: what those of one head depend on beside that: how its tokens and its training lie in memory.
    """

    def __init__(self, folder: Path, setting: dict[str, Any], describe: Callable[[Candidate], dict[str, Any]]) -> None:
        self._folder, self._describe = folder, describe
        self._setting = {**setting, "versions": {name: version(name) for name in ("layerbank", "torch")}}
        self._used: set[Path] = set()

    def find(self, key: BankKey) -> BankScores | None:
        """What was kept of a bank; None if it was not, or cannot be read."""
        path = self._path(key)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                kept = {name: torch.from_numpy(arrays[name]) for name in ("accuracies", "steps", "losses", "lrs")}
        except (FileNotFoundError, EOFError, zipfile.BadZipFile, ValueError, KeyError):
            return None
        self._renew(path)
        curves = LearningCurves(steps=kept["steps"], losses=kept["losses"], lrs=kept["lrs"])
        return BankScores(accuracies=kept["accuracies"], curves=curves)

    def keep(self, key: BankKey, scores: BankScores) -> None:
        """Write the bank's file and wait until it is on the disk."""
        path = self._path(key)
        content = io.BytesIO()
        np.savez(
            content,
            accuracies=scores.accuracies.numpy(),
            steps=scores.curves.steps.numpy(),
            losses=scores.curves.losses.numpy(),
            lrs=scores.curves.lrs.numpy(),
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
        self._renew(path)

    def clear(self) -> None:
        """Remove what this sweep found and kept, for its rows are written, and what is abandoned."""
        if not self._folder.exists():
            return
        for path in {*self._used, *self._abandoned()}:
            path.unlink(missing_ok=True)
        self._used.clear()
        with contextlib.suppress(OSError):  # another sweep's files are there, or it has removed the folder
            self._folder.rmdir()

    def _renew(self, path: Path) -> None:
        """Say that this sweep lives and needs this file and those before it."""
        self._used.add(path)
        for used in self._used:
            with contextlib.suppress(FileNotFoundError):
                os.utime(used)

    def _abandoned(self) -> list[Path]:
        """Banks, also half written ones, that nobody has needed for long."""
        oldest_s, found = time.time() - ABANDONED_S, []
        for path in self._folder.glob("*.npz"):
            with contextlib.suppress(FileNotFoundError):  # its sweep has just finished
                if path.stat().st_mtime < oldest_s:
                    found.append(path)
        return found

    def _path(self, key: BankKey) -> Path:
        return (
            self._folder
            / f"{key_of({**self._setting, 'memory': self._describe(key.candidate), 'bank': asdict(key)})}.npz"
        )


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all, also after the power is cut."""
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    if os.name != "nt":  # folders cannot be opened there
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
