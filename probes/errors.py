"""The exceptions of the probes.

    ProbeError
    |-- SettingError      (ValueError)         an invalid head, setting or protocol
    |-- DataError         (ValueError)         tokens, targets or splits that cannot be used
    `-- CheckpointError   (ValueError)         an unreadable saved probe
        `-- CheckpointMissing  (FileNotFoundError)

A probe that diverges is a result, not an error: see `sweep.py`.
"""

from __future__ import annotations

from layerbank.errors import LayerbankError


class ProbeError(LayerbankError):
    """Probes cannot be trained or loaded."""


class SettingError(ProbeError, ValueError):
    """A head, a setting or a protocol is invalid."""


class DataError(ProbeError, ValueError):
    """Tokens, targets or splits cannot be used."""


class CheckpointError(ProbeError, ValueError):
    """A saved probe cannot be read."""


class CheckpointMissing(CheckpointError, FileNotFoundError):
    """There is no saved probe."""
