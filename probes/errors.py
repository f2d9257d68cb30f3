"""The exceptions of the probes.

    ProbeError
    |-- SettingError      (ValueError)         a head, a setting or a protocol that makes no sense
    |-- DataError         (ValueError)         tokens, labels or splits that do not fit the work
    `-- CheckpointError   (ValueError)         a saved probe that is not what it should be
        `-- CheckpointMissing  (FileNotFoundError)

A probe that diverges is a result, not an error: see `sweep.py`.
"""

from __future__ import annotations

from layerbank.errors import LayerbankError


class ProbeError(LayerbankError):
    """Training or loading probes cannot go on."""


class SettingError(ProbeError, ValueError):
    """A head, a setting or a protocol that makes no sense."""


class DataError(ProbeError, ValueError):
    """Tokens, labels or splits that do not fit the work."""


class CheckpointError(ProbeError, ValueError):
    """A saved probe that is not what it should be."""


class CheckpointMissing(CheckpointError, FileNotFoundError):
    """There is no saved probe."""
