"""Probes that are made of a finished one: the smallest set of its levels that is enough, the ensemble of its best settings.

The decisions taken here: the base is trained first, as itself and with a row of its own, so its grid is never trained again for
what is made of it; everything is chosen on the held-out images of the protocol, and the test images are opened after the last
training. A search that was killed goes on with the sets of levels that are missing.

What is good enough, and which settings are the best, is arithmetic: `probing/selection.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerbank.cache import TokenCache
from layerbank.probes import (
    BatchPlan,
    Candidate,
    Choice,
    Ensemble,
    Rung,
    Setting,
    SettingScore,
    SweepResult,
    TokenSource,
    balanced_accuracy,
    first_duplicates,
    join_members,
    score_held_out,
    split_rows,
    train_chosen,
)

from ..events import OnEvent, ProbeStarted, TrainingStarted
from .bootstrap import LEVEL
from .probe_groups import ProbeGroup, open_group
from .probe_spec import ProbeSpec, TopSettings
from .results import Row
from .selection import Levels, Validated, best_members, smallest_levels
from .sweep_journal import SweepJournal
from .tokens.token_rows import block_names
from .training import Trained, open_tokens, relay


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What was chosen on the held-out images.

    Attributes:
        named: what is trained at last: a head on some levels.
        members: its settings with their scores, one unless it is an ensemble.
        validation: balanced accuracy of the choice.
        num_trained: probes that were trained to find it.
        told: for the row.
        held_out: for a file beside it, name -> array.
    """

    named: ProbeSpec
    members: tuple[SettingScore, ...]
    validation: float
    num_trained: int
    told: dict[str, Any]
    held_out: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def derive(
    named: ProbeSpec,
    base: Row,
    group: ProbeGroup,
    open_test: Callable[[], TokenCache],
    device: torch.device,
    journal_of: Callable[[ProbeGroup], SweepJournal],
    on_event: OnEvent,
) -> Trained:
    """Make a probe of a finished one.

    Args:
        named: what to make.
        base: the row of what it is made of, by the same protocol on the same stores.
        ride: of the base, alone.
        open_test: opens the test store; called after the last training.
        device: where probes are trained.
        journal_of: of searches for levels, by the ride as it is in the end.
        emit: told what happens.
    """
    if base["chosen"] is None:
        return _Work(
            named=named, base=base, group=group, device=device, journal=journal_of(group), on_event=on_event
        ).nothing_found()
    group, source = open_group(group, on_event)
    work = _Work(named=named, base=base, group=group, device=device, journal=journal_of(group), on_event=on_event)
    began_s = time.perf_counter()
    if isinstance(named.derived, TopSettings):
        found = work.find_members(source, named.derived.num_members)
    else:
        found = work.find_levels(source)
    return work.finish(found, source, time.perf_counter() - began_s, open_test)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What the steps share: the arguments of `derive`."""

    named: ProbeSpec
    base: Row
    group: ProbeGroup
    device: torch.device
    journal: SweepJournal
    on_event: OnEvent

    def find_levels(self, source: TokenSource) -> _Found:
        """The smallest set of levels, by the setting that the base chose."""
        _, rows = self._split(source)
        labels, setting = source.labels[rows].numpy(), Setting(**self.base["chosen"])
        of_base = self.group.probes[0]
        rounds: list[list[Validated]] = []

        def train(sets: Sequence[Levels]) -> list[Validated]:
            readers = {held: self._candidate(replace(of_base, levels=held)) for held in sets}
            found = {held: self.journal.find_hits(reader, setting) for held, reader in readers.items()}
            missing = [held for held in sets if found[held] is None]
            hits = np.zeros((len(missing), len(rows)), dtype=bool)

            def see(number: int, stretch: slice, logits: Tensor) -> None:
                right = logits.argmax(1).numpy() == labels[stretch]
                hits[number, stretch] = right & logits.isfinite().all(1).numpy()

            self._score([Choice(candidate=readers[held], setting=setting) for held in missing], source, see)
            for held, of_held in zip(missing, hits, strict=True):
                self.journal.keep_hits(readers[held], setting, of_held)
                found[held] = of_held
            rounds.append(
                [
                    Validated(levels=held, hits=of_held, labels=labels)
                    for held, of_held in found.items()
                    if of_held is not None
                ]
            )
            return rounds[-1]

        self._begin(len(of_base.levels) * (len(of_base.levels) + 1) // 2, source)
        choice = smallest_levels(of_base.levels, train)
        score = SettingScore(setting=setting, validation=choice.chosen.accuracy, num_steps=self._selection.num_steps)
        return _Found(
            named=replace(of_base, levels=choice.chosen.levels),
            members=(score,),
            validation=choice.chosen.accuracy,
            num_trained=choice.num_trained,
            told={
                "rounds": [
                    [{"levels": list(one.levels), "validation": one.accuracy} for one in of_round]
                    for of_round in rounds
                ],
                "best": {"levels": list(choice.best.levels), "validation": choice.best.accuracy},
                "gap": {**asdict(choice.gap), "confidence": LEVEL},
            },
            held_out={"labels": labels, "hits": np.stack([one.hits for one in choice.path])},
        )

    def find_members(self, source: TokenSource, num_members: int) -> _Found:
        """The best settings of the base, and what they say together of the held-out images."""
        scores = [
            SettingScore(
                setting=Setting(lr=one["lr"], weight_decay=one["weight_decay"], dropout=one["dropout"]),
                validation=one["validation"],
                num_steps=one["num_steps"],
            )
            for one in self.base["settings"]
        ]
        settings = [score.setting for score in scores if isinstance(score.setting, Setting)]
        most = max(score.num_steps for score in scores)  # a halving sweep has judged the others by less
        # twins are one probe: twice in an ensemble, it would only count twice
        eligible = [
            score.validation if score.num_steps == most and first == index else None
            for index, (score, first) in enumerate(zip(scores, first_duplicates(settings), strict=True))
        ]
        members = tuple(scores[index] for index in best_members(eligible, num_members))
        candidate = self._candidate(self.group.probes[0])
        _, rows = self._split(source)
        together = torch.zeros(len(rows), source.num_classes)

        def see(number: int, stretch: slice, logits: Tensor) -> None:
            together[stretch] += logits.double().softmax(-1).nan_to_num().float()

        self._begin(len(members), source)
        self._score([Choice(candidate=candidate, setting=_setting(one)) for one in members], source, see)
        validation = balanced_accuracy(together.argmax(1), source.labels[rows], source.num_classes).item()
        return _Found(
            named=self.group.probes[0],
            members=members,
            validation=validation,
            num_trained=len(members),
            told={"members": [asdict(_setting(one)) | {"validation": one.validation} for one in members]},
        )

    def finish(
        self, found: _Found, source: TokenSource, seconds: float, open_test: Callable[[], TokenCache]
    ) -> Trained:
        """Train the choice on all training images, test it once."""
        candidate = self._candidate(found.named)

        def open_source() -> TokenSource:
            return open_tokens(open_test(), self.group.probes, self.device)

        refits = train_chosen(
            [Choice(candidate=candidate, setting=_setting(one)) for one in found.members],
            source,
            open_source,
            self.group.protocol,
            memory_bytes=self.group.placement.training_bytes,
            device=self.device,
            on_event=relay((self.named.name,), self.on_event),
        )
        last = refits[0] if len(refits) == 1 else join_members(refits, open_source)
        told = dict(found.told)
        if "members" in told:
            told["members"] = [
                one | {"diverged": of_one.probe is None} for one, of_one in zip(told["members"], refits, strict=True)
            ]
        probes: list[Any] = list(last.probe.members) if isinstance(last.probe, Ensemble) else [last.probe]
        sound = [one for one in probes if one is not None]
        num_parameters = sum(parameter.numel() for one in sound for parameter in one.parameters())
        of_classifiers = sum(parameter.numel() for one in sound for parameter in one.classifier.parameters())
        result = SweepResult(
            head=candidate.head,
            scores=found.members,
            chosen=_setting(found.members[0]),
            validation=found.validation,
            diverged=last.probe is None,
            test=last.test,
            test_logits=last.test_logits,
            probe=last.probe,
            num_parameters=num_parameters,
            num_parameters_before_classifier=num_parameters - of_classifiers,
            seconds={"select": seconds} | last.seconds,
            selection=self._selection,
            rungs=(Rung(num_settings=found.num_trained, num_steps=self._selection.num_steps),),
            refit=last.plan,
            refit_curves=last.curves,
        )
        return self._trained(found.named, result, self._about() | told, len(refits), found.held_out)

    def nothing_found(self) -> Trained:
        """Every setting of the base diverged."""
        head = self.group.sweeps[0][0].head
        result = SweepResult(
            head=head,
            scores=(),
            chosen=None,
            validation=None,
            diverged=True,
            test=None,
            test_logits=None,
            probe=None,
            num_parameters=self.base["num_parameters"],
            num_parameters_before_classifier=self.base["num_parameters_before_classifier"],
            seconds={},
        )
        return self._trained(self.group.probes[0], result, self._about(), 0, {})

    def _trained(
        self,
        named: ProbeSpec,
        result: SweepResult,
        told: dict[str, Any],
        num_refits: int,
        held_out: Mapping[str, NDArray[Any]],
    ) -> Trained:
        return Trained(
            named=self.named,
            candidate=replace(named, name=self.named.name),
            result=result,
            protocol=self.group.protocol,
            memory=self.group.describe_choice(self._candidate(named)),
            together_with=(),
            num_refits=num_refits,
            derived=told,
            held_out=held_out,
        )

    def _about(self) -> dict[str, Any]:
        return {"base": self.base["probe"], "base_key": self.base["key"]}

    def _candidate(self, named: ProbeSpec) -> Candidate:
        """The base's head, on the levels of `named`."""
        return Candidate(head=self.group.sweeps[0][0].head, blocks=block_names(named))

    def _split(self, source: TokenSource) -> tuple[Tensor, Tensor]:
        return split_rows(source, self.group.protocol.validation_fraction, self.group.protocol.seed)

    def _score(self, choices: Sequence[Choice], source: TokenSource, see: Callable[[int, slice, Tensor], None]) -> None:
        if choices:
            score_held_out(
                choices,
                source,
                self.group.protocol,
                see,
                memory_bytes=self.group.placement.training_bytes,
                device=self.device,
                on_event=relay((self.named.name,), self.on_event),
            )

    def _begin(self, num_trainings: int, source: TokenSource) -> None:
        shape = self.group.tokens.token_shape
        self.on_event(
            ProbeStarted(
                probe=self.named.name, num_settings=num_trainings, num_rows=len(source.labels), token_shape=shape
            )
        )
        self.on_event(TrainingStarted(probes=(self.named.name,), num_settings=num_trainings, num_passes=1))

    @property
    def _selection(self) -> BatchPlan:
        """The batches of every training on the kept images: those of the base's."""
        plan = self.base["selection"]
        return BatchPlan(**{name: plan[name] for name in ("num_samples", "batch_size", "num_epochs")})


def _setting(score: SettingScore) -> Setting:
    assert isinstance(score.setting, Setting), "what is solved has no ensemble"
    return score.setting
