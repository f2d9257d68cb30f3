"""layerbank's tool: models and images on one side, the command line on the other, `cache` and `probes` between.

The three folders install under their own names, so this one checks that the `cache` and `probes` that Python would import are the
ones that came with it. Importing `pipeline` imports neither torch nor zarr.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .errors import PipelineError, RequestError, WorkError

__all__ = ["PipelineError", "RequestError", "WorkError"]


def _check_rooms(home: Path) -> None:
    """Raise unless `cache` and `probes` lie beside `pipeline`.

    Raises:
        RequestError: another package of that name comes first on the path.
    """
    for room in ("cache", "probes"):
        spec = find_spec(room)
        origin = spec.origin if spec else None
        if origin is None or Path(origin).resolve().parent.parent != home:
            raise RequestError(
                where=f"package {room!r}",
                expected=f"layerbank's own, {home / room}",
                got=origin or "nothing that can be imported",
                todo="Rename or uninstall the package that hides it, or start layerbank from another folder.",
            )


_check_rooms(Path(__file__).resolve().parent.parent)
