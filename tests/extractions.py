"""Extraction of a source into a cache folder, as the library does it for one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerbank.cache import ModelStores
from layerbank.data.image_set import identify
from layerbank.data.image_source import ImageSource
from layerbank.data.splits.split_rows import SplitRows
from layerbank.data.views import ViewRule
from layerbank.events import OnEvent, ignore
from layerbank.extraction.extract import ExtractConfig, Extraction, extract_together
from layerbank.models.backbone import Backbone
from layerbank.probing.tokens.split_tokens import SplitRequest, request_tokens


def rows_of(source: ImageSource, root: Path, rule: ViewRule | None = None) -> SplitRows:
    """The rows of a source, hashed, with the content index in the cache folder."""
    return SplitRows(source=source, images=identify(source, root), rule=rule)


def extract(
    backbone: Backbone,
    source: ImageSource,
    config: ExtractConfig,
    root: Path,
    *,
    rule: ViewRule | None = None,
    request: dict[str, Any] | None = None,
    on_event: OnEvent = ignore,
) -> SplitRequest:
    """Compute what a cache folder lacks of a source; the request for its tokens."""
    rows = rows_of(source, root, rule)
    extraction = Extraction(backbone=backbone, config=config, cache_root=root, request=request)
    extract_together([extraction], rows, on_event=on_event)
    return request_tokens(root, extraction.model, backbone.tap, rows, config.arrays)


def only_store(request: SplitRequest) -> Path:
    """The one store of a model."""
    (files,) = ModelStores(request.cache_root, request.model).stores
    return files.path
