"""What the rest of the code knows about a head, as one frozen value: `HeadType`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor

from .head_module import HeadModule

NumHeads = tuple[int, int] | Literal["one a token"]
Solver = Callable[[Tensor, Tensor, Tensor, int, Sequence[float]], Sequence[HeadModule]]
"""Features [N, F] float32, labels [N] int64, sample weights [N] float64 that sum to 1, C, and the grid -> one module a value."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of the names of probes, and what such a probe reads.

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
        has_parameters: False for a solved head that keeps training tokens instead.
        grid: for a solved head, the field of the protocol that lists its settings.
        own_forms: the forms of its names; None for the usual ones.
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
    has_parameters: bool = True
    grid: Literal["penalties", "num_neighbors"] = "penalties"
    own_forms: tuple[Form, ...] | None = None

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
            )
        forms = (
            Form(text=self.name, layers=self.layers, kinds=self.kinds),
            Form(text=f"{self.name}-{{layers}}", kinds=self.kinds),
        )
        return forms if self.has_levels else (*forms, Form(text=f"{self.name}@{{level}}", kinds=self.kinds))
