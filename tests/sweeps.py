"""Small protocols, heads and token sources for tests that run whole sweeps."""

from __future__ import annotations

import torch

from layerbank.probes import ArraySource, Block, Candidate, Head, TrainingProtocol, columns_of, stack_tokens

ATTENTIVE, LINEAR = Head(kind="attentive", num_heads=4), Head(kind="linear")
SMALL = TrainingProtocol(
    lrs=(1e-1, 1e-2), weight_decays=(1e-4, 1e-2), dropouts=(0.0, 0.3), epochs=4, min_steps=40, batch_size=32
)

WIDE, NARROW = 16, 12  # the last level is narrower, as CLIP's is
BLOCKS = (
    Block(name="block.1/cls", num_tokens=1, width=WIDE),
    Block(name="block.1/ap", num_tokens=1, width=WIDE),
    Block(name="block.1/grid2", num_tokens=4, width=WIDE),
    Block(name="final/cls", num_tokens=1, width=NARROW),
    Block(name="final/ap", num_tokens=1, width=NARROW),
)
HEADS = {
    "linear-cls": Candidate(head=LINEAR, blocks=("final/cls",)),
    "linear-all": Candidate(head=LINEAR, blocks=("block.1/cls", "block.1/ap", "final/cls", "final/ap")),
    "attn-last": Candidate(head=Head(kind="attentive", num_heads=2), blocks=("final/cls", "final/ap")),
    "alf": Candidate(head=ATTENTIVE, blocks=("block.1/cls", "block.1/ap", "final/cls", "final/ap")),  # padded
    "grid": Candidate(head=ATTENTIVE, blocks=("block.1/cls", "block.1/grid2")),
    "simpool": Candidate(head=Head(kind="simpool"), blocks=("block.1/cls", "block.1/grid2")),
}


def make_source(head: Head, num_samples: int, seed: int) -> ArraySource:
    """Three classes around centres of four tokens: stacked for an attentive head, concatenated for a linear one."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num_samples) % 3
    tokens = stack_tokens([centres[labels] + torch.randn(num_samples, 4, 16, generator=generator)])
    return ArraySource(tokens if head.kind == "attentive" else tokens.flatten(1), labels, 3)


def make_block_source(num_samples: int, seed: int) -> ArraySource:
    """Rows of `BLOCKS` in three classes that each block distinguishes a little."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_samples) % 3
    centres = torch.randn(3, sum(block.size for block in BLOCKS), generator=torch.Generator().manual_seed(99))
    rows = 0.5 * centres[labels] + torch.randn(num_samples, centres.shape[1], generator=generator)
    for block, columns in zip(BLOCKS, columns_of(BLOCKS).values(), strict=True):
        rows[:, columns] = stack_tokens([rows[:, columns].view(-1, block.num_tokens, block.width)]).flatten(1)
    return ArraySource(rows, labels, 3, blocks=BLOCKS)
