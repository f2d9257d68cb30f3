"""A saved probe read again on a store: its accuracy on any split, its attention head by head, and what is left without some tokens.

Nothing is trained. The store must be of the backbone that the probe was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from layerbank.cache import CacheSpec, TokenCache
from layerbank.probes import AlfEmbedProbe, AttentiveProbe, CaeProbe, attention_mass, load_probe

from ..data.views import evaluation_transform
from ..errors import RequestError
from ..probing.figures import attention_map
from ..probing.predict import BACKBONE_FIELDS
from ..probing.probe_spec import ProbeSpec
from ..probing.tokens.token_source import CachedTokens, require_arrays
from ..statistics.predictions import Predictions, accuracies

ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A probe that sees only some of its tokens.

    Attributes:
        num_tokens: k, how many it sees.
        tokens: which, by falling attention.
        balanced_accuracy: in [0, 1].
    """

    num_tokens: int
    tokens: tuple[int, ...]
    balanced_accuracy: float


class SavedHead:
    """A trained probe and the tokens of one store that it reads.

    Args:
        folder: of a row: RUNS/<data set>/<store>/<name>-<key>.
        store: of any split.

    Raises:
        ProbeError: no readable probe in the folder.
        CacheError: no readable store.
        RequestError: the store is of another backbone, or lacks a level or kind.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self.probe, config = load_probe(folder)
        named = config["probe"]
        self.named = ProbeSpec(**{**named, "levels": tuple(named["levels"]), "kinds": tuple(named["kinds"])})
        self.cache = TokenCache.open(store, num_views=0)
        _check_backbone(folder, CacheSpec.from_dict(config["cache"]), store, self.cache.spec)
        require_arrays(list(self.cache.arrays), self.named, store)
        self.tokens = CachedTokens(self.cache, self.named)

    def predict(self, kept: Sequence[int] | None = None) -> Predictions:
        """Class scores of every image of the store, in its order.

        Args:
            kept: the tokens the probe may look at; None is all. Attention is shared anew among those that are left.

        Raises:
            RequestError: `kept` is given for a head to which a token is more than a place to look.
        """
        if kept is not None:
            self._require_plain_attention()
        chosen = slice(None) if kept is None else list(kept)
        rows = torch.arange(len(self.tokens.labels))
        with torch.inference_mode():
            parts = [self.probe(self.tokens.take(part)[:, chosen]) for part in torch.split(rows, ROWS_AT_ONCE)]
        return Predictions(
            sample_ids=np.array(self.tokens.sample_ids),
            labels=self.tokens.labels.numpy(),
            logits=torch.cat(parts).numpy(),
        )

    def attention_by_head(self) -> NDArray[np.float64]:
        """[H, kinds, levels] shares of attention, averaged over the images of the store; each head sums to 1.

        Raises:
            RequestError: the head does not attend.
        """
        row_shapes = [self.cache.arrays[self.named.levels[0], kind].row_shape for kind in self.named.kinds]
        counts = [shape[0] if len(shape) > 1 else 1 for shape in row_shapes]  # tokens a kind
        heads = self.attention().numpy()  # [H, T]
        return np.stack([attention_map(mass, self.named.levels, self.named.kinds, counts) for mass in heads])

    def attention(self) -> torch.Tensor:
        """[H, T] float64 attention a head and token, averaged over the images of the store.

        Raises:
            RequestError: the head does not attend.
        """
        if not isinstance(self.probe, AttentiveProbe | AlfEmbedProbe | CaeProbe):
            raise self._unfit("an attentive head (alf, aat, attn-*, cae, alf-embed)")
        return attention_mass(self.probe, self.tokens)

    def _require_plain_attention(self) -> None:
        if not isinstance(self.probe, AttentiveProbe):
            raise self._unfit(
                "the attentive head of alf, aat and attn-*, to which a token is a place to look and no more"
            )

    def _unfit(self, expected: str) -> RequestError:
        return RequestError(
            where=f"probe {self.named.name}", expected=expected, got=self.named.head, todo="Choose another row."
        )


def prune_tokens(folder: Path, train_store: Path, test_store: Path, counts: Sequence[int]) -> list[Kept]:
    """Test accuracy of a probe with only the k tokens that it attends to most, without training it again.

    Tokens are ordered by their attention on the training images, averaged over heads, so no test image has a say in what is kept;
    equals keep their order.

    Args:
        folder: of the row.
        train_store, test_store: of its two splits.
        counts: the k's, each from 1 to T.

    Raises:
        RequestError: a count out of range, or a head that cannot be pruned.
    """
    train, test = SavedHead(folder, train_store), SavedHead(folder, test_store)
    order = torch.argsort(-train.attention().mean(0), stable=True).tolist()
    wrong = [count for count in counts if not 1 <= count <= len(order)]
    if wrong:
        raise RequestError(
            where="tokens to keep",
            expected=f"from 1 to {len(order)}",
            got=", ".join(map(str, wrong)),
            todo="Ask for as many as the probe has, or fewer.",
        )
    results = []
    for count in counts:
        balanced = accuracies(test.predict(order[:count])).balanced
        results.append(Kept(num_tokens=count, tokens=tuple(order[:count]), balanced_accuracy=balanced))
    return results


def _check_backbone(folder: Path, trained: CacheSpec, store: Path, found: CacheSpec) -> None:
    trained, found = (replace(one, transform=evaluation_transform(one.transform)) for one in (trained, found))
    differing = [name for name in BACKBONE_FIELDS if getattr(trained, name) != getattr(found, name)]
    if differing:
        raise RequestError(
            where=f"probe {folder} on {store}",
            expected="tokens of the backbone it was trained on: "
            + "; ".join(f"{name} = {getattr(trained, name)!r}" for name in differing),
            got="; ".join(f"{name} = {getattr(found, name)!r}" for name in differing),
            todo="Give the store of the same model.",
        )
