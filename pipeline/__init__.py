"""layerbank: a vision foundation model once, every layer's tokens kept, attentive probes by the hundred.

`layerbank.cache` is the store, `layerbank.probes` the heads; importing `layerbank` imports neither torch nor zarr.
"""

from __future__ import annotations

from .errors import LayerbankError, RequestError, WorkError

__all__ = ["LayerbankError", "RequestError", "WorkError"]
