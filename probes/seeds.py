"""Every random number comes from a generator that is made for one purpose at one moment.

A generator is derived from (seed, purpose, numbers such as the step), never carried along. So a draw depends
neither on what was drawn before it nor on how many probes share it, and any step can be drawn again alone.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch


def make_generator(seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose.

    Args:
        seed: the run's seed, not negative.
        purpose: what is drawn, for example "jitter".
        numbers: what tells one draw from the next, for example the step; not negative.
        device: where the numbers are drawn. Two kinds of device draw different bits.

    >>> draw = lambda *key: torch.rand(1, generator=make_generator(*key)).item()
    >>> draw(0, "order", 3) == draw(0, "order", 3)
    True
    >>> len({draw(0, "order", 3), draw(0, "order", 4), draw(0, "jitter", 3), draw(1, "order", 3)})
    4
    """
    entropy = np.random.SeedSequence([seed, crc32(purpose.encode()), *numbers])
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
