"""Train what is chosen already: given settings of given heads, no grid and no choice. Ensembles and searches are built of it.

Each comes out as the protocol would train it alone: a bank of its own, in passes that others may share. What is to be learnt about
the choice is learnt on the held-out images of the protocol; the test images are opened after the last training, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .banks.budget import MemoryPlan
from .curves import join_curves
from .data.split import split_rows
from .data.token_source import TokenSource
from .ensemble import Ensemble, mean_of_members
from .evaluate import compute_all_logits, measure
from .events import OnEvent
from .fit import FitResult, fit_banks
from .group_plan import Candidate, GroupPlan, plan_group
from .passes import plan_passes
from .protocol import Setting, TrainingProtocol
from .refit import Refit, Winner, refit
from .trainable_heads import TrainableHead, prepare


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One training: a head on its tokens, and a setting."""

    candidate: Candidate
    setting: Setting


@torch.no_grad()
def score_held_out(
    choices: Sequence[Choice],
    train: TokenSource,
    protocol: TrainingProtocol,
    see: Callable[[int, slice, Tensor], None],
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    phase: str = "select",
    on_event: OnEvent | None = None,
) -> list[FitResult]:
    """Train choices on the kept images and show what each says of the held-out ones: the split is that of the protocol.

    Args:
        choices: what to train.
        train: the training images.
        protocol: split, batches, schedule, seed; its grid does not matter.
        see: called with the number of a choice, a stretch of the held-out images in their order, and its class scores [b, C] of
            them, on the CPU. A choice that diverged in training is not shown.
        memory_bytes: what training may take; None is no limit.
        device: of the arithmetic.
        phase: named in the progress.
        emit: called with `Progress`.

    Returns:
        what each training left beside its probe.

    Raises:
        SettingError: head and tokens do not fit each other, or not even one probe fits into the memory.
    """
    plan, trainables = _prepare(choices, train, protocol, memory_bytes)
    kept, held_out = split_rows(train, protocol.validation_fraction, protocol.seed)
    left: dict[int, FitResult] = {}
    for places in plan_passes([trainables[choice.candidate].bank_bytes for choice in choices], plan.banks_bytes):
        bank_runs = [trainables[choices[place].candidate].group([choices[place].setting], device) for place in places]
        fitted = fit_banks(bank_runs, train, kept, protocol, phase=phase, on_event=on_event)
        left |= dict(zip(places, fitted, strict=True))
        sound = [
            (place, bank_run) for place, bank_run in zip(places, bank_runs, strict=True) if not left[place].diverged[0]
        ]
        done = 0
        if sound:
            asked = [bank_run for _, bank_run in sound]
            for parts in compute_all_logits(asked, train, held_out, phase="validate", on_event=on_event):
                stretch = slice(done, done + parts[0].shape[1])
                for (place, _), logits in zip(sound, parts, strict=True):
                    see(place, stretch, logits[0])
                done = stretch.stop
        del bank_runs, sound  # before the next ones take their memory
    return [left[place] for place in range(len(choices))]


def train_chosen(
    choices: Sequence[Choice],
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    on_event: OnEvent | None = None,
) -> list[Refit]:
    """Train choices on all training images, then open the test images, once, and test them: the last step of the protocol.

    Args:
        choices: what to train, each once.
        open_test: not called if every training diverges.
        train, protocol, memory_bytes, device, emit: as in `score_held_out`.

    Raises:
        SettingError: as there.
        DataError: test tokens unlike the training tokens.
    """
    plan, trainables = _prepare(choices, train, protocol, memory_bytes)
    each = list(trainables)
    winners = [Winner(trainable=each.index(choice.candidate), setting=choice.setting) for choice in choices]
    trained = refit(
        winners,
        list(trainables.values()),
        train,
        open_test,
        protocol,
        memory_bytes=plan.banks_bytes,
        device=device,
        best=None,
        on_event=on_event,
    )
    return [trained[winner] for winner in winners]


def plan_choice(
    candidate: Candidate, source: TokenSource, protocol: TrainingProtocol, memory_bytes: int | None
) -> MemoryPlan | None:
    """How a choice of this candidate is trained: all that could change its bits; arguments and errors as in `score_held_out`."""
    return plan_group([candidate], source, _of_one_setting(protocol), memory_bytes).memory[0]


def join_members(members: Sequence[Refit], open_test: Callable[[], TokenSource]) -> Refit:
    """The ensemble of trained and tested probes, without those that diverged; their curves are [k, K], of all in their order.

    Args:
        members: of `train_chosen`, at least one.
        open_test: for the labels of the test images.
    """
    seconds = {phase: sum(one.seconds.get(phase, 0.0) for one in members) for phase in members[0].seconds}
    sound = [(one.probe, one.test_logits) for one in members if one.probe is not None and one.test_logits is not None]
    curves = join_curves((([place], one.curves) for place, one in enumerate(members)), len(members))
    if not sound:
        return replace(members[0], curves=curves, seconds=seconds)
    logits = mean_of_members(torch.stack([of_one for _, of_one in sound]))
    probe = Ensemble([probe for probe, _ in sound if not isinstance(probe, Ensemble)])
    test = measure(logits, open_test())
    return replace(members[0], curves=curves, probe=probe, test_logits=logits, test=test, seconds=seconds)


def _prepare(
    choices: Sequence[Choice], train: TokenSource, protocol: TrainingProtocol, memory_bytes: int | None
) -> tuple[GroupPlan, dict[Candidate, TrainableHead]]:
    """Each candidate once, planned for one probe at a time."""
    candidates = list(dict.fromkeys(choice.candidate for choice in choices))
    alone = _of_one_setting(protocol)
    plan = plan_group(candidates, train, alone, memory_bytes)
    trainables = {
        candidate: prepare(candidate, train, alone, memory, refit_bytes)
        for candidate, memory, refit_bytes in zip(candidates, plan.memory, plan.refit_bytes, strict=True)
    }
    return plan, trainables


def _of_one_setting(protocol: TrainingProtocol) -> TrainingProtocol:
    return replace(
        protocol, lrs=protocol.lrs[:1], weight_decays=protocol.weight_decays[:1], dropouts=protocol.dropouts[:1]
    )
