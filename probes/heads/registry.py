"""The registry of heads. Adding a head takes one file with a `HEAD`, and its name here."""

from __future__ import annotations

from dataclasses import dataclass

from layerbank.registry import Registry

from ..errors import SettingError
from ..tasks.task import Task
from .head import HeadModule, HeadType

_NAMES = (
    *("linear", "ridge", "logreg", "knn"),
    *("attentive", "cae", "aim", "ep", "vjepa", "map", "abmilp", "simpool"),
    *("alf-embed", "scalar-mix"),
)
HEADS = Registry(
    "layerbank.heads",
    "head",
    HeadType,
    {name: f"layerbank.probes.heads.{name.replace('-', '_')}:HEAD" for name in _NAMES},
)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head of the registry with its numbers of heads and levels, 0 where it has none.

    Raises:
        RequestError: the kind is not in the registry.
        SettingError: a number is missing, or is given for a head that has none.
    """

    kind: str
    num_heads: int = 0
    num_levels: int = 0

    def __post_init__(self) -> None:
        head_type = HEADS.require(self.kind)
        if (head_type.has_heads, head_type.has_levels) != (self.num_heads >= 1, self.num_levels >= 1):
            raise SettingError(
                "probes.head_numbers",
                head=self.kind,
                heads_rule=">= 1" if head_type.has_heads else "0",
                levels_rule=">= 1" if head_type.has_levels else "0",
                num_heads=self.num_heads,
                num_levels=self.num_levels,
            )


def make_probe(head: Head, token_shape: tuple[int, ...], num_classes: int, *, seed: int = 0) -> HeadModule:
    """An untrained module; for ridge and logreg the linear layer that they solve.

    Args:
        head: its kind and numbers.
        token_shape: (T, D) of stacked tokens, (F,) of concatenated ones.
        num_classes: C, the number of outputs.
        seed: for the initial weights.

    Raises:
        SettingError: the head does not fit the tokens, for example because the number of heads does not divide D.
        ValueError: the head is knn, or another one that has no parameters and needs the training tokens.
    """
    head_type, width = HEADS[head.kind], token_shape[-1]
    if not head_type.has_parameters:
        raise ValueError(f"{head.kind} keeps its training tokens: it cannot be made before they are read")
    sizes = {"num_features" if head_type.flat else "embed_dim": width}
    if head_type.has_heads:
        sizes["num_heads"] = head.num_heads
    if head_type.has_levels:
        sizes |= {"num_levels": head.num_levels, "num_tokens": token_shape[0]}
    return head_type.module(**sizes, num_classes=num_classes, seed=seed)


def check_task(head: Head, task: Task) -> None:
    """Raise SettingError if the head cannot answer the task."""
    kind = HEADS[head.kind]
    if kind.tasks is not None and task.type not in kind.tasks:
        values = {"tasks": ", ".join(kind.tasks), "reason": kind.tasks_reason and f": {kind.tasks_reason}"}
        raise SettingError("probes.head_not_for_task", head=head.kind, task=task.type, **values)
