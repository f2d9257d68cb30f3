"""Post-hoc probes, made of a finished one: the smallest set of its levels that is enough, the ensemble of its best settings.

The base is trained first, as itself and with a row of its own, so its grid is never trained again for them. Everything is chosen on
the held-out images of the protocol, and the test images are opened after the last training. A search that was killed goes on with
the sets of levels that are missing. `selection.py` has the arithmetic: which set is enough, and which settings are the best.

Both are for the task `multiclass` alone, others are refused before: sets of levels are compared by balanced accuracy, and an
ensemble averages the class probabilities of its members.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from .rows.results import Row
from .selection import Levels, Validated, best_members, smallest_levels
from .sweep_journal import SweepJournal
from .tokens.split_tokens import SplitTokens
from .tokens.token_source import block_names
from .training import Trained, open_tokens, relay


def train_post_hoc(
    named: ProbeSpec,
    base: Row,
    group: ProbeGroup,
    open_test: Callable[[], SplitTokens],
    journal_of: Callable[[ProbeGroup], SweepJournal],
    on_event: OnEvent,
) -> Trained:
    """Train a post-hoc probe and test it.

    Args:
        named: the probe.
        base: the row of its base, by the same protocol on the same stores.
        group: the group of the base alone.
        open_test: opens the test store; called after the last training.
        journal_of: returns the journal of searches for levels; called with the group as it is trained.
        on_event: called with what happens.
    """
    if base["chosen"] is None:
        return _diverged(named, base, group)
    group, source = open_group(group, on_event)
    training = _PostHocTraining(
        named=named,
        base=base,
        group=group,
        source=source,
        journal=journal_of(group),
        open_test=open_test,
        on_event=on_event,
        began_s=time.perf_counter(),
    )
    top = named.derived if isinstance(named.derived, TopSettings) else None
    return training.train_members(top.num_members) if top else training.train_levels()


@dataclass(frozen=True, kw_only=True, eq=False)
class _PostHocTraining:
    """The arguments of `train_post_hoc`, and the tokens of the training images."""

    named: ProbeSpec
    base: Row
    group: ProbeGroup
    source: TokenSource
    journal: SweepJournal
    open_test: Callable[[], SplitTokens]
    on_event: OnEvent
    began_s: float

    def train_levels(self) -> Trained:
        """Find the smallest set of levels, by the setting that the base chose, and train the head on it."""
        labels, setting = self._held_out_labels().numpy(), Setting(**self.base["chosen"])
        of_base = self.group.probes[0]
        rounds: list[list[Validated]] = []

        def train(sets: Sequence[Levels]) -> list[Validated]:
            hits = self._hits_of(sets, setting, labels)
            rounds.append([Validated(levels=levels, hits=hits[levels], labels=labels) for levels in sets])
            return rounds[-1]

        self._announce(len(of_base.levels) * (len(of_base.levels) + 1) // 2)
        choice = smallest_levels(of_base.levels, train)
        score = SettingScore(setting=setting, validation=choice.chosen.accuracy, num_steps=self._selection.num_steps)
        return self._finish(
            replace(of_base, levels=choice.chosen.levels),
            (score,),
            validation=choice.chosen.accuracy,
            num_trained=choice.num_trained,
            record={
                "rounds": [[_level_record(one) for one in of_round] for of_round in rounds],
                "best": _level_record(choice.best),
                "gap": {**asdict(choice.gap), "confidence": LEVEL},
            },
            held_out={"labels": labels, "hits": np.stack([one.hits for one in choice.path])},
        )

    def _hits_of(
        self, sets: Sequence[Levels], setting: Setting, labels: NDArray[np.int64]
    ) -> dict[Levels, NDArray[np.bool_]]:
        """Which held-out images the base on each set of levels gets right; trains those that are not in the journal."""
        candidates = {levels: self._candidate(replace(self.group.probes[0], levels=levels)) for levels in sets}
        kept = {levels: self.journal.find_hits(candidate, setting) for levels, candidate in candidates.items()}
        hits = {levels: np.zeros(len(labels), dtype=bool) if of is None else of for levels, of in kept.items()}
        missing = [levels for levels in sets if kept[levels] is None]

        def see(number: int, places: Tensor, logits: Tensor) -> None:
            right = logits.argmax(1).numpy() == labels[places.numpy()]
            hits[missing[number]][places.numpy()] = right & logits.isfinite().all(1).numpy()

        self._score([Choice(candidate=candidates[levels], setting=setting) for levels in missing], see)
        for levels in missing:
            self.journal.keep_hits(candidates[levels], setting, hits[levels])
        return hits

    def train_members(self, num_members: int) -> Trained:
        """Find the best settings of the base, score their mean on the held-out images, and train them."""
        scores = [
            SettingScore(
                setting=Setting(lr=one["lr"], weight_decay=one["weight_decay"], dropout=one["dropout"]),
                validation=one["validation"],
                num_steps=one["num_steps"],
            )
            for one in self.base["settings"]
        ]
        most = max(score.num_steps for score in scores)  # a halving sweep has judged the others by less
        # settings that train one and the same probe: twice in an ensemble, it would only count twice
        first = first_duplicates([_setting(score) for score in scores])
        eligible = [
            score.validation if score.num_steps == most and first[index] == index else None
            for index, score in enumerate(scores)
        ]
        members = tuple(scores[index] for index in best_members(eligible, num_members))
        candidate, labels = self._candidate(self.group.probes[0]), self._held_out_labels()
        task = self.source.task
        together = torch.zeros(len(labels), task.num_outputs)

        def see(number: int, places: Tensor, logits: Tensor) -> None:
            together[places] += logits.double().softmax(-1).nan_to_num().float()

        self._announce(len(members))
        self._score([Choice(candidate=candidate, setting=_setting(one)) for one in members], see)
        return self._finish(
            self.group.probes[0],
            members,
            validation=task.score(task.predict(together), labels).item(),
            num_trained=len(members),
            record={"members": [asdict(_setting(one)) | {"validation": one.validation} for one in members]},
            held_out={},
        )

    def _finish(
        self,
        named: ProbeSpec,
        members: tuple[SettingScore, ...],
        *,
        validation: float,
        num_trained: int,
        record: dict[str, Any],
        held_out: Mapping[str, NDArray[Any]],
    ) -> Trained:
        """Train the choice on all training images, and test it once.

        `named` is the base's head on some levels, `record` goes into the row and `held_out` into a file beside it.
        """
        select_s = time.perf_counter() - self.began_s
        candidate, group = self._candidate(named), self.group

        def open_source() -> TokenSource:
            return open_tokens(self.open_test(), group)

        refits = train_chosen(
            [Choice(candidate=candidate, setting=_setting(one)) for one in members],
            self.source,
            open_source,
            group.protocol,
            memory_bytes=group.placement.training_bytes,
            device=group.placement.device,
            on_event=relay((self.named.name,), self.on_event),
        )
        last = refits[0] if len(refits) == 1 else join_members(refits, open_source)
        for member, refit in zip(record.get("members", ()), refits, strict=False):
            member["diverged"] = refit.probe is None
        num_parameters, num_before = _count_parameters(last.probe)
        result = SweepResult(
            head=candidate.head,
            scores=members,
            chosen=_setting(members[0]),
            validation=validation,
            diverged=last.probe is None,
            test=last.test,
            test_logits=last.test_logits,
            probe=last.probe,
            num_parameters=num_parameters,
            num_parameters_before_classifier=num_before,
            seconds={"select": select_s} | last.seconds,
            selection=self._selection,
            rungs=(Rung(num_settings=num_trained, num_steps=self._selection.num_steps),),
            refit=last.plan,
            refit_curves=last.curves,
        )
        return Trained(
            named=self.named,
            candidate=replace(named, name=self.named.name),
            result=result,
            protocol=group.protocol,
            memory=group.describe_choice(candidate),
            num_refits=len(refits),
            derived=_about(self.base) | record,
            held_out=held_out,
        )

    def _candidate(self, named: ProbeSpec) -> Candidate:
        """The base's head, on the levels of `named`."""
        return Candidate(head=self.group.sweeps[0][0].head, blocks=block_names(named))

    def _held_out_labels(self) -> Tensor:
        _, rows = split_rows(self.source, self.group.protocol.validation_fraction, self.group.protocol.seed)
        return self.source.targets[rows]

    def _score(self, choices: Sequence[Choice], see: Callable[[int, Tensor, Tensor], None]) -> None:
        if choices:
            score_held_out(
                choices,
                self.source,
                self.group.protocol,
                see,
                memory_bytes=self.group.placement.training_bytes,
                device=self.group.placement.device,
                on_event=relay((self.named.name,), self.on_event),
            )

    def _announce(self, num_trainings: int) -> None:
        self.on_event(
            ProbeStarted(
                probe=self.named.name,
                num_settings=num_trainings,
                num_rows=len(self.source.targets),
                token_shape=self.group.tokens.token_shape,
            )
        )
        self.on_event(TrainingStarted(probes=(self.named.name,), num_settings=num_trainings, num_passes=1))

    @property
    def _selection(self) -> BatchPlan:
        """The batches of every training on the kept images: those of the base's."""
        plan = self.base["selection"]
        return BatchPlan(**{name: plan[name] for name in ("num_samples", "batch_size", "num_epochs")})


def _diverged(named: ProbeSpec, base: Row, group: ProbeGroup) -> Trained:
    """A post-hoc probe of a base all of whose settings diverged has diverged, too."""
    (candidate,) = group.sweeps[0]
    result = SweepResult(
        head=candidate.head,
        scores=(),
        chosen=None,
        validation=None,
        diverged=True,
        test=None,
        test_logits=None,
        probe=None,
        num_parameters=base["num_parameters"],
        num_parameters_before_classifier=base["num_parameters_before_classifier"],
        seconds={},
    )
    return Trained(
        named=named,
        candidate=replace(group.probes[0], name=named.name),
        result=result,
        protocol=group.protocol,
        memory=group.describe_choice(candidate),
        num_refits=0,
        derived=_about(base),
    )


def _count_parameters(probe: Any) -> tuple[int, int]:
    """All parameters, and those before the classifiers; 0 for a probe that diverged, and for such members of an ensemble."""
    members: list[Any] = list(probe.members) if isinstance(probe, Ensemble) else [probe]
    sound = [member for member in members if member is not None]
    of_all, of_classifiers = (
        sum(parameter.numel() for part in parts for parameter in part.parameters())
        for parts in (sound, [member.classifier for member in sound])
    )
    return of_all, of_all - of_classifiers


def _about(base: Row) -> dict[str, Any]:
    return {"base": base["probe"], "base_key": base["key"]}


def _level_record(one: Validated) -> dict[str, Any]:
    return {"levels": list(one.levels), "validation": one.accuracy}


def _setting(score: SettingScore) -> Setting:
    assert isinstance(score.setting, Setting), "solved heads have no post-hoc probes"
    return score.setting
