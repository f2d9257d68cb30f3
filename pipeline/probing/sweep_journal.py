"""Finished banks of interrupted sweeps: a sweep that was killed goes on with the banks that are missing.

One file a bank, `RUNS/<data set>/<store>/.sweeps/<digest>.npz`: its scores and curves, or, for a search for levels, which held-out
images a set of them got right. The digest is of everything that could change them: the train store, the protocol, how tokens and
training lie in memory, versions of torch and of this package, the head, its blocks and the settings trained together. So a file is
found by the sweep that would compute the same numbers, for whichever probe, and by no other.

Files appear whole or not at all. Each names the rows it is kept for and is removed when all of them are written. A sweep renews the
times of its files with every bank; files that no sweep has renewed for `ABANDONED_S` are removed with the next finished row. If a
living sweep should lose its files, only a restart after a kill would suffer.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerbank.cache.atomic_files import replace_file
from layerbank.probes import BankKey, BankScores, Candidate, LearningCurves, Setting

from ..data.saved_arrays import UnreadableArrays, load_arrays
from .rows.results import key_of

ABANDONED_S = 30 * 24 * 3600.0


class SweepJournal:
    """A `layerbank.probes.Journal` of files.

    Args:
        folder: folder of the journal; made when there is something to keep.
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
        self._setting = {**setting, "versions": {"layerbank": version("layerbank"), "torch": version("torch")}}

    def find(self, key: BankKey) -> BankScores | None:
        """The scores of a bank; None if they were not kept, or cannot be read."""
        kept = self._find(key, ("accuracies", "steps", "losses", "lrs"))
        if kept is None:
            return None
        curves = (len(key.settings), kept[1].size)
        expected = {"f8": curves[:1], "i8": curves[1:], "f4": curves}
        if any(array.dtype.str[1:] not in expected or array.shape != expected[array.dtype.str[1:]] for array in kept):
            return None
        accuracies, steps, losses, lrs = map(torch.from_numpy, kept)
        return BankScores(accuracies=accuracies, curves=LearningCurves(steps=steps, losses=losses, lrs=lrs))

    def keep(self, key: BankKey, scores: BankScores) -> None:
        """Write the bank's file and wait until it is on the disk."""
        curves = {"steps": scores.curves.steps, "losses": scores.curves.losses, "lrs": scores.curves.lrs}
        self._keep(
            key, **{name: values.numpy() for name, values in {"accuracies": scores.accuracies, **curves}.items()}
        )

    def find_hits(self, candidate: Candidate, setting: Setting) -> NDArray[np.bool_] | None:
        """[N] which held-out images a probe of a search got right; None if it was not kept, or cannot be read."""
        kept = self._find(_search_key(candidate, setting), ("hits",))
        return kept[0] if kept else None

    def keep_hits(self, candidate: Candidate, setting: Setting, hits: NDArray[np.bool_]) -> None:
        """Write them and wait until they are on the disk."""
        self._keep(_search_key(candidate, setting), hits=hits)

    def _find(self, key: BankKey, names: Sequence[str]) -> list[NDArray[Any]] | None:
        path = self._path(key)
        try:
            kept = load_arrays(path, names)
        except UnreadableArrays:
            return None
        self._renew(path)
        return kept

    def _keep(self, key: BankKey, **arrays: NDArray[Any]) -> None:
        path, content = self._path(key), io.BytesIO()
        np.savez(content, rows=np.array(self._rows), **arrays)  # type: ignore[arg-type]  # as in attention.py
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue())
        self._renew(path)

    def _renew(self, path: Path) -> None:
        """Renew the times of this file and of those this sweep has used before: they are not abandoned."""
        self._used.add(path)
        for used in self._used:
            with suppress(FileNotFoundError):
                os.utime(used)

    def _path(self, key: BankKey) -> Path:
        digest = key_of({**self._setting, "memory": self._describe(key.candidate), "bank": asdict(key)})
        return self._folder / f"{digest}.npz"


def clear_finished(folder: Path, finished: Collection[str]) -> None:
    """Remove the files whose rows are all written, and those that no sweep has needed for long.

    Args:
        folder: of journals.
        finished: keys of rows.
    """
    if not folder.exists():
        return
    oldest_s = time.time() - ABANDONED_S
    for path in folder.glob("*.npz"):  # staging files too
        with suppress(FileNotFoundError, UnreadableArrays):  # its sweep may have just removed it
            if path.stat().st_mtime < oldest_s or set(load_arrays(path, ("rows",))[0].ravel().tolist()) <= set(
                finished
            ):
                path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty
        folder.rmdir()


def _search_key(candidate: Candidate, setting: Setting) -> BankKey:
    return BankKey(candidate=candidate, settings=(setting,), num_steps=0)  # no bank of a grid: those have steps
