"""Which models may run code of their own: the one place that decides.

A file can name a model: a saved probe, the header of a store, a recipe. So the name of a model gives no permission. Permission is
given by the command line of a call (`--allow-code`, in Python `allow_code`) and by the user's own trust file:

    # $XDG_CONFIG_HOME/layerbank/trusted.toml, by default ~/.config/layerbank/trusted.toml
    models = ["torchhub:facebookresearch/dinov2:dinov2_vits14", "torchhub:/home/me/vits:small"]

This module knows no model families: `families.open_tower` asks it for each model of a family that runs code.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from ..toml_file import read_toml

CodeOf = Callable[[str, Path], str]
"""(model id, folder of relative paths) -> the id of the code that it runs, with absolute paths.

Raises:
    RequestError: a malformed id.
"""


@dataclass(frozen=True)
class CodePermission:
    """The models that a call allows to run code, and who named the model.

    Attributes:
        allowed: model ids; a single text is one id.
        asked_by: the file or the option that names the model, for messages.
    """

    allowed: Sequence[str] = ()
    asked_by: str = "--model"

    def __post_init__(self) -> None:
        if isinstance(self.allowed, str):
            object.__setattr__(self, "allowed", (self.allowed,))

    def require(self, model_id: str, code_of: CodeOf) -> None:
        """Refuse a model whose code neither this call nor the trust file allows.

        Raises:
            RequestError: it is not allowed, or the trust file cannot be read.
        """
        here, file = Path.cwd(), trust_file()
        wanted = code_of(model_id, here)
        if _names(self.allowed, wanted, code_of, here) or _names(read_trust_file(file), wanted, code_of, file.parent):
            return
        raise RequestError(
            "models.code_not_allowed",
            model=model_id,
            asked_by=self.asked_by,
            option=f"--allow-code {shlex.quote(model_id)}",
            file=file,
        )


NO_CODE = CodePermission()


def trust_file() -> Path:
    """The user's list of models that may run code; it need not exist."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder) / "layerbank" / "trusted.toml"


def read_trust_file(file: Path) -> list[str]:
    """Return the models of a trust file; none if there is no such file.

    Raises:
        RequestError: it cannot be read, or is not of the form `models = [...]`.
    """
    try:
        values = read_toml(file)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RequestError("models.bad_trust_file", file=file, reason=error) from error
    models = values.get("models", [])
    if values.keys() - {"models"} or not isinstance(models, list) or not all(isinstance(one, str) for one in models):
        raise RequestError("models.bad_trust_file", file=file, reason=f"the keys {', '.join(values)}")
    return models


def _names(models: Sequence[str], wanted: str, code_of: CodeOf, folder: Path) -> bool:
    """Whether one of some models runs the wanted code."""
    for one in models:
        try:
            if code_of(one, folder) == wanted:
                return True
        except RequestError:
            pass  # of another family
    return False
