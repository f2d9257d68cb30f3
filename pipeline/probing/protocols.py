"""Training protocols by name, or from a TOML file that changes some of the paper's values."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import fields, replace
from pathlib import Path

from layerbank.probes import PAPER, QUICK, ProbeError, TrainingProtocol

from ..errors import RequestError

NAMED = {"paper": PAPER, "quick": QUICK}


def open_protocol(name: str, *, seed: int) -> TrainingProtocol:
    """A protocol with a seed.

    Args:
        name: paper, quick, or the path of a TOML file whose keys are fields of `TrainingProtocol`; what it does not name is as
            in the paper.
        seed: replaces the protocol's.

    Raises:
        RequestError: no such protocol, not TOML, or a key that is none.
    """
    if name in NAMED:
        return replace(NAMED[name], seed=seed)
    path = Path(name)
    if not path.is_file():
        raise RequestError(
            where="--protocol",
            expected="paper, quick, or a TOML file",
            got=repr(name),
            todo="Use one of the two, or write a file with lines such as: lrs = [0.01, 0.001]",
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            where=f"--protocol {path}", expected="TOML", got=str(error), todo="Correct the file."
        ) from error
    known = [field.name for field in fields(TrainingProtocol) if field.name != "seed"]
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise RequestError(
                where=f"--protocol {path}",
                expected="keys among " + ", ".join(known),
                got=repr(key),
                todo="Give the seed with --seed." if key == "seed" else f"Did you mean {nearest!r}?",
            )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return replace(PAPER, **values, seed=seed)
    except ProbeError as error:
        raise RequestError(
            where=f"--protocol {path}", expected=error.expected, got=error.got, todo=error.todo
        ) from error
    except TypeError as error:
        raise RequestError(
            where=f"--protocol {path}",
            expected="numbers, and lists of numbers for lrs, weight_decays, dropouts, penalties and num_neighbors",
            got=str(error),
            todo="Correct the file.",
        ) from error
