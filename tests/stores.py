"""What a finished store is, for tests that compare stores."""

from __future__ import annotations

import hashlib
from pathlib import Path


def tree(store: Path) -> dict[str, str]:
    """Every file of a store and the digest of its bytes."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
