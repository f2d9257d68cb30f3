"""Settings that train to the same bits: they are trained once.

AdamW multiplies a weight by 1 - lr wd. In float32 the numbers just below 1 are 2^-24 apart, so with lr wd below 2^-25 the
factor is 1 exactly, whatever the weight: decays of 1e-6 and 1e-5 at lr 1e-3 are both no decay at all, at every step,
for the cosine only lowers lr. `tests/test_twins.py` holds torch's AdamW to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .protocol import Setting

NO_DECAY = 2.0**-25  # of float32, in which sweeps train


def first_duplicates(settings: Sequence[Setting]) -> list[int]:
    """Of each setting the first one that trains to the same bits, often itself.

    >>> from .heads import Head
    >>> from .protocol import PAPER
    >>> settings = PAPER.settings(Head(kind="linear"))
    >>> [index for index, first in enumerate(first_twins(settings)) if first != index], settings[15]
    ([15], Setting(lr=0.001, weight_decay=1e-05, dropout=0.0))
    """
    first: dict[tuple[float, float, float], int] = {}
    duplicates = []
    for index, setting in enumerate(settings):
        decay = 0.0 if setting.lr * setting.weight_decay < NO_DECAY else setting.weight_decay
        duplicates.append(first.setdefault((setting.lr, decay, setting.dropout), index))
    return duplicates
