"""Random generators, each for one purpose.

A generator is derived from (seed, purpose, numbers such as the step) and never reused. So a draw depends neither on earlier
draws nor on how many probes share it, and the draws of any step can be repeated.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch


def make_generator(seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator derived from the arguments alone.

    Args:
        seed: seed of the run, not negative.
        purpose: what is drawn, for example "jitter".
        numbers: distinguish the draws of a purpose, for example by the step; not negative.
        device: device of the generator; CPU and GPU draw different bits.

    >>> draw = lambda *key: torch.rand(1, generator=make_generator(*key)).item()
    >>> draw(0, "order", 3) == draw(0, "order", 3)
    True
    >>> len({draw(0, "order", 3), draw(0, "order", 4), draw(0, "jitter", 3), draw(1, "order", 3)})
    4
    """
    entropy = np.random.SeedSequence([seed, crc32(purpose.encode()), *numbers])
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
