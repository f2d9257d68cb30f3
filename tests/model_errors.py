"""Models that `open_backbone` refuses."""

from __future__ import annotations

from typing import Any

from messages import check, raises

from layerbank.errors import LayerbankError, RequestError
from layerbank.models.backbone import open_backbone
from layerbank.models.trust import CodePermission


def refuses_model(
    key: str,
    model_id: str,
    options: dict[str, Any] | None = None,
    /,
    kind: type[LayerbankError] = RequestError,
    **values: object,
) -> LayerbankError:
    """Opening a model ends with the message of this key, with these of its values among others; returns the error."""
    with raises(key, kind) as refused:
        open_backbone(model_id, permission=CodePermission(model_id), **(options or {}))
    check(refused.error, key, values)
    return refused.error
