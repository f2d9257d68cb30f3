"""A saved probe on stored tokens: its accuracy on any split, its attention, and its accuracy without some tokens.

Nothing is trained. The tokens must be of the backbone that the probe was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from layerbank.cache import ModelSpec
from layerbank.probes import AlfEmbedProbe, AttentiveProbe, CaeProbe, attention_mass, load_probe

from ..errors import RequestError
from ..probing.predict import BACKBONE_FIELDS, trained_model
from ..probing.probe_spec import ProbeSpec
from ..probing.tokens.split_tokens import SplitRequest
from ..probing.tokens.token_source import CachedTokens
from ..statistics.predictions import Predictions, accuracies

ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class PrunedAccuracy:
    """Accuracy of a probe that reads only some of its tokens.

    Attributes:
        tokens: places of the k tokens, by falling attention.
        balanced_accuracy: in [0, 1].
    """

    tokens: tuple[int, ...]
    balanced_accuracy: float


class SavedHead:
    """A trained probe and the tokens of one split that it reads.

    Args:
        folder: folder of a row: RUNS/<data set>/<model>/<name>-<key>.
        split: any split of the same model.

    Raises:
        ProbeError: no readable probe in the folder.
        CacheError: some images have no tokens, or a store is damaged.
        RequestError: the tokens are of another backbone.
    """

    def __init__(self, folder: Path, split: SplitRequest) -> None:
        self.probe, config = load_probe(folder, any_tokens=True)  # some of its tokens, see `predict`
        self.named = ProbeSpec.from_dict(config["probe"])
        _check_backbone(folder, trained_model(config), split)
        self.cache = replace(split, arrays=tuple(self.named.arrays), rule=None).open()
        self.tokens = CachedTokens(self.cache, self.named)

    def predict(self, kept: Sequence[int] | None = None) -> Predictions:
        """Class scores of every usable image of the split, in its order.

        Args:
            kept: places of the tokens to read; None reads all. The softmax runs over these tokens only.

        Raises:
            RequestError: `kept` is given for a head that needs all of its tokens.
        """
        if kept is not None and not isinstance(self.probe, AttentiveProbe):
            raise RequestError("report.not_prunable", probe=self.named.name, head=self.named.head)
        chosen = slice(None) if kept is None else list(kept)
        order = self.tokens.reading_order
        with torch.inference_mode():
            parts = [self.probe(self.tokens.take(part)[:, chosen]) for part in torch.split(order, ROWS_AT_ONCE)]
        return Predictions(
            sample_ids=np.array(self.tokens.sample_ids),
            labels=self.tokens.targets.numpy(),
            logits=torch.cat(parts)[order.argsort()].numpy(),
        )

    def attention(self) -> torch.Tensor:
        """[H, T] float64 attention of each head and token, averaged over the images of the split.

        Raises:
            RequestError: the head does not attend.
        """
        if not isinstance(self.probe, AttentiveProbe | AlfEmbedProbe | CaeProbe):
            raise RequestError("report.no_attention", probe=self.named.name, head=self.named.head)
        return attention_mass(self.probe, self.tokens)


def prune_tokens(
    folder: Path, train_split: SplitRequest, test_split: SplitRequest, counts: Sequence[int]
) -> list[PrunedAccuracy]:
    """Test accuracy of a probe with only the k tokens that it attends to most, without training it again.

    Tokens are ordered by their attention on the training images, averaged over heads, so test images do not decide which are kept;
    equals keep their order.

    Args:
        folder: folder of the row.
        train_split, test_split: its two splits.
        counts: values of k, each from 1 to T.

    Raises:
        RequestError: a count out of range, or a head that cannot be pruned.
    """
    train, test = SavedHead(folder, train_split), SavedHead(folder, test_split)
    order = torch.argsort(-train.attention().mean(0), stable=True).tolist()
    wrong = [str(count) for count in counts if not 1 <= count <= len(order)]
    if wrong:
        raise RequestError("report.wrong_token_count", num_tokens=len(order), counts=", ".join(wrong))
    kept = [order[:count] for count in counts]
    return [
        PrunedAccuracy(tokens=tuple(tokens), balanced_accuracy=accuracies(test.predict(tokens)).balanced)
        for tokens in kept
    ]


def _check_backbone(folder: Path, trained: ModelSpec, split: SplitRequest) -> None:
    differing = [name for name in BACKBONE_FIELDS if getattr(trained, name) != getattr(split.model, name)]
    if differing:
        expected, got = (
            "; ".join(f"{name} = {getattr(one, name)!r}" for name in differing) for one in (trained, split.model)
        )
        raise RequestError("report.other_backbone", probe=folder, store=split.name, expected=expected, got=got)
