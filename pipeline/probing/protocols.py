"""Training protocols by name, or from a TOML file that changes some of the paper's values."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from layerbank.probes import PAPER, QUICK, ProbeError, TrainingProtocol

from ..errors import RequestError, advice
from ..toml_file import read_toml

NAMED = {"paper": PAPER, "quick": QUICK}


def open_protocol(name: str, *, seed: int) -> TrainingProtocol:
    """A protocol with a seed.

    Args:
        name: paper, quick, or the path of a TOML file whose keys are fields of `TrainingProtocol`; other fields are as in the
            paper.
        seed: replaces the protocol's.

    Raises:
        RequestError: no such protocol, not TOML, an unknown key, or an invalid value.
    """
    if name in NAMED:
        return replace(NAMED[name], seed=seed)
    path = Path(name)
    if not path.is_file():
        raise RequestError("probing.unknown_protocol", name=name)
    try:
        values = read_toml(path)
    except (OSError, ValueError) as error:
        raise RequestError("probing.protocol_not_toml", path=path, reason=error) from error
    if "seed" in values:
        raise RequestError("probing.protocol_with_seed", path=path)
    known = [field.name for field in fields(TrainingProtocol) if field.name != "seed"]
    for key in [key for key in values if key not in known]:
        todo = advice(key, known)
        raise RequestError("probing.unknown_protocol_key", path=path, keys=", ".join(known), key=key, advice=todo)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return replace(PAPER, **values, seed=seed)
    except ProbeError as error:
        parts = {"expected": error.expected, "got": error.got, "todo": error.todo}
        raise RequestError("probing.invalid_protocol", path=path, **parts) from error
    except TypeError as error:
        raise RequestError("probing.protocol_types", path=path, reason=error) from error
