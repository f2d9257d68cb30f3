"""layerbank: run a vision foundation model once, keep the tokens of every layer, train attentive probes by the hundred.

`layerbank.cache` is the token store, `layerbank.probes` holds heads and their trainer; the other packages connect them to images,
models and the command line. Importing `layerbank` imports neither torch nor zarr.
"""

from __future__ import annotations

from .errors import LayerbankError, RequestError, WorkError

__version__ = "0.2.0"
__all__ = ["LayerbankError", "RequestError", "WorkError", "__version__"]
