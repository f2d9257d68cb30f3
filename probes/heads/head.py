"""The interface of a head: a plain module (`HeadModule`), and a description of it for the rest of the code (`HeadType`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..seeds import make_generator
from ..tasks.task import Task
from .features import Features


class HeadModule(nn.Module):
    """A plain module from tokens [B, T, D] or features [B, F], L2-normalised and padded, to outputs [B, C]; abstract.

    A subclass sets `kind`, has a `classifier`, and computes its input in `pool`. It uses no random numbers and no in-place writes
    (except in BatchNorm), so that `torch.func` can run many probes at once.

    Args:
        sizes: the arguments of the constructor except the seed; a saved probe keeps them. Those of the heads here:
            embed_dim: D, the width of a token.
            num_heads: H.
            num_levels, num_tokens: L and T, tokens level by level, T/L of each.
            num_features: F, of concatenated tokens.
            num_classes: C, the number of outputs: a number for each class, or what else the task asks for.
        seed: for the initial weights, PyTorch's default for Linear unless the head says otherwise.

    Attributes:
        kind: the name in the registry.
        has_dropout: the head has attention dropout; `forward` then also takes `keep` [B, H, T].
        zero_gradient: parameters that cannot change the loss, whose gradient autograd computes as rounding noise.
        zero_gradient_without_dropout: parameters for which this is true at dropout rate 0.

    Raises:
        SettingError: a size is not positive, or does not divide another one as the head requires.
    """

    kind: ClassVar[str]
    has_dropout: ClassVar[bool] = False
    zero_gradient: ClassVar[tuple[str, ...]] = ()
    zero_gradient_without_dropout: ClassVar[tuple[str, ...]] = ()
    classifier: nn.Linear

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        if min(sizes.values()) < 1:
            raise SettingError(
                "probes.sizes_not_positive",
                head=type(self).__name__,
                names=", ".join(sizes),
                sizes=", ".join(f"{name} {size}" for name, size in sizes.items()),
            )

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(tokens))
        return logits

    def pool(self, tokens: Tensor) -> Tensor:
        """The input of the classifier, one row an image."""
        raise NotImplementedError

    @classmethod
    def forward_each(cls, probes: Sequence[Self], features: Tensor) -> list[Tensor]:
        """Logits [B, C] of several probes that were solved together on the same rows, as `forward` of each."""
        return [probe(features) for probe in probes]

    @classmethod
    def restore(cls, sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Self:
        """A module of saved sizes that can load the saved weights."""
        return cls(**sizes)

    def describe(self) -> dict[str, Any]:
        """The kind, and the sizes for `restore`: JSON values."""
        return {"kind": self.kind, **self.sizes}

    def check_divides(self, divisor: str, size: str) -> None:
        """Raise SettingError unless the size `divisor` divides the size `size`."""
        if self.sizes[size] % self.sizes[divisor]:
            raise SettingError(
                "probes.size_not_divisible",
                head=type(self).__name__,
                divisor=divisor,
                divisor_value=self.sizes[divisor],
                size=size,
                size_value=self.sizes[size],
            )


def make_linear(in_features: int, out_features: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """PyTorch's default for Linear, U(-1/sqrt(in), 1/sqrt(in)), from an explicit generator."""
    linear = nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device="cpu")
    for parameter in linear.parameters():
        nn.init.uniform_(parameter, -(in_features**-0.5), in_features**-0.5, generator=generator)
    return linear


def initial_weights(seed: int) -> torch.Generator:
    """The generator of a head's initial weights."""
    return make_generator(seed, "initial weights")


NumHeads = tuple[int, int] | Literal["one a token"]
Solver = Callable[[Features, Tensor, Tensor, Task, Sequence[float]], Sequence[HeadModule]]
"""Features of N rows, encoded targets [N], weights [N] float64 that sum to 1, task, and the grid -> one module a value."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of the names of probes, and the tokens that such a probe reads.

    Attributes:
        text: words joined by - and @. A word in braces stands for one of several: {layers} for a layer set, {kind} for cls or ap,
            {grid} for grid1, grid2, ..., {level} after @ for a level.
        layers: the layer set, where the text has neither {layers} nor {level}.
        kinds: the kinds that are read, before that of {kind} or {grid}.
        num_heads: replaces the number of the head's type.
        protocol: fields of the training protocol that it changes.
    """

    text: str
    layers: str = "last"
    kinds: tuple[str, ...] = ()
    num_heads: NumHeads | None = None
    protocol: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HeadType:
    """A head: its module, the tokens it reads, how it is trained or solved, and how its probes are named.

    Attributes:
        name: in the registry, in names of probes, in saved probes and result rows.
        module: the class of the plain module. Its constructor takes `embed_dim` (`num_features` if flat), then `num_heads` if
            the head has heads, `num_levels` and `num_tokens` if it has levels, `num_classes` and `seed`.
        flat: reads concatenated tokens (F,) instead of stacked ones (T, D).
        layers: the layer set that is read by default.
        kinds: the kinds that are read at each level by default.
        num_heads: the default number of heads, or of queries that act as heads, for backbones of less than 24 blocks and from 24
            on; or one head a token; None for a head without heads.
        has_levels: the module distinguishes the levels of its tokens.
        removable_levels: a level is nothing but more tokens, so that the smallest sufficient set of levels can be searched for.
        bank: which bank trains it. `folded` and `linear` have hand-written gradients for the heads of this package; `module`
            differentiates any module by `torch.func`.
        solver: solves the head instead of training it; None for a trained head.
        solver_bytes: memory (N, F, C, number of settings) that the solver takes beside the features, at most, in bytes.
        tasks: the types of task that it can answer; None for all.
        tasks_reason: why it cannot answer others, for messages.
        has_parameters: False for a solved head that keeps training tokens instead.
        grid: for a solved head, the field of the protocol that lists its settings.
        own_forms: the forms of its names; None for the usual ones.
        version: raised when a change of its equation or its initial weights changes results; the rows before are then computed
            again.
    """

    name: str
    module: type[HeadModule]
    flat: bool = False
    layers: str = "last"
    kinds: tuple[str, ...] = ("cls", "patch")
    num_heads: NumHeads | None = None
    has_levels: bool = False
    removable_levels: bool = False
    bank: Literal["folded", "linear", "module"] = "module"
    solver: Solver | None = None
    solver_bytes: Callable[[int, int, int, int], int] = lambda *sizes: 0
    tasks: tuple[str, ...] | None = None
    tasks_reason: str = ""
    has_parameters: bool = True
    grid: Literal["penalties", "num_neighbors"] = "penalties"
    own_forms: tuple[Form, ...] | None = None
    version: int = 1

    @property
    def has_heads(self) -> bool:
        return self.num_heads is not None

    @property
    def has_dropout(self) -> bool:
        return self.module.has_dropout

    @property
    def is_solved(self) -> bool:
        return self.solver is not None

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """The forms of its names, the shortest of equals first."""
        if self.own_forms is not None:
            return self.own_forms
        if self.flat:
            return (
                Form(text=f"{self.name}-{{kind}}"),
                Form(text=f"{self.name}-{{layers}}", kinds=("cls", "ap")),
                Form(text=f"{self.name}-{{layers}}-{{kind}}"),
                Form(text=f"{self.name}@{{level}}", kinds=("cls",)),
                Form(text=f"{self.name}-ap@{{level}}", kinds=("ap",)),
                Form(text=f"{self.name}-{{grid}}", layers="all", kinds=("cls",)),
                Form(text=f"{self.name}-{{grid}}-{{layers}}", kinds=("cls",)),
                Form(text=f"{self.name}-{{grid}}@{{level}}", kinds=("cls",)),
                Form(text=f"{self.name}-patch", kinds=("cls", "patch")),
                Form(text=f"{self.name}-patch-{{layers}}", kinds=("cls", "patch")),
                Form(text=f"{self.name}-patch@{{level}}", kinds=("cls", "patch")),
            )
        forms = (
            Form(text=self.name, layers=self.layers, kinds=self.kinds),
            Form(text=f"{self.name}-{{layers}}", kinds=self.kinds),
        )
        return forms if self.has_levels else (*forms, Form(text=f"{self.name}@{{level}}", kinds=self.kinds))
