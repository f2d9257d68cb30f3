"""Probes on the tokens of one model and data set: extract what is missing, then train, choose and test.

`layerbank probe`, a unit of a study and `layerbank.run` all do this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from layerbank.probes import TrainingProtocol, resolve_compute

from ..data.duplicates import duplicates_of
from ..data.splits.parts import Part
from ..data.splits.split_record import SplitRecord
from ..events import OnEvent, SharedImages, ignore
from ..memory import memory_for_probes
from ..models.backbone import Backbone
from ..models.request import ModelRequest
from ..outputs import check_folder
from ..probing.probe import check_train_views, probe, run_folder, verify_tokens
from ..probing.probe_sizes import check_heads, leave_out_unfit
from ..probing.probe_spec import ProbeSpec, check_names, parse_probes
from ..probing.protocols import open_protocol
from ..probing.rows.results import Row
from ..probing.task_options import check_task_options
from ..probing.tokens.split_tokens import SplitRequest
from ..quantities import parse_size
from .cases import Cases, check_cases, open_cases
from .extract import (
    RequestedExtraction,
    check_job,
    open_model,
    open_rows,
    report_data,
    request_extraction,
    settle_and_check_disk,
)
from .job import ProbeJob, TrainingJob

ChooseProbes = Callable[[ProbeJob, Backbone], Sequence[ProbeSpec]]
Training = Callable[[], list[Row]]
"""Trains the probes of a job by one seed, and returns their rows."""


def protocol_of(job: TrainingJob, device: str | None = None) -> TrainingProtocol:
    """The training protocol of a job, for its first seed.

    Args:
        job: the job.
        device: where it will be followed; None does not check whether that device can.

    Raises:
        RequestError, SettingError: what is wrong with the options, before hours of extraction.
    """
    changed = {name: value for name in ("sweep", "compute") if (value := getattr(job, name)) is not None}
    if job.reference_quirks:
        changed["jitter_validation"] = True
    protocol = replace(open_protocol(job.protocol, seed=job.seeds[0]), **changed)
    if device is not None:
        resolve_compute(protocol.compute, device)
    if job.memory is not None:
        parse_size(job.memory)
    check_train_views(job.train_views, job.views)
    check_task_options(job.task, job.metric)
    check_cases(job)
    return protocol


def check_training(job: TrainingJob) -> TrainingProtocol:
    """Refuse what can be known to be wrong before data and models are opened; return the protocol.

    Raises:
        RequestError, SettingError: as `check_job` and `protocol_of`, or a folder of results that cannot be written.
    """
    check_folders(job)
    return protocol_of(job, check_job(job))


def check_folders(job: TrainingJob) -> None:
    """Refuse folders that cannot hold stores and results.

    Raises:
        RequestError: names the option.
    """
    check_folder(job.cache_root, "--cache", is_written=False)
    check_folder(job.runs_root, "--runs")


def probes_of(job: ProbeJob, backbone: Backbone) -> list[ProbeSpec]:
    """The probes of a job.

    Raises:
        RequestError: an unknown name, or one that the backbone cannot have.
    """
    named = parse_probes(
        list(job.probes), backbone.depth, num_heads=job.num_heads, reference_quirks=job.reference_quirks
    )
    named = leave_out_unfit(named, backbone.row_shape)
    check_heads(named, backbone.row_shape)
    return named


def prepare_probes(
    job: ProbeJob,
    *,
    cases: Cases | None = None,
    opened: tuple[ModelRequest, Backbone] | None = None,
    choose: ChooseProbes = probes_of,
    fail: Callable[..., None] | None = None,
    num_sharers: int = 1,
    on_event: OnEvent = ignore,
) -> tuple[Path, Iterator[Training]]:
    """Extract what is missing, and prepare the training of the probes by each seed.

    Args:
        job: what to do.
        cases: what is predicted, and the parts of the images; None opens the data.
        opened: the model, and how it was opened; None opens it.
        choose: the probes of the job that the model can have.
        fail: called with a probe that cannot be trained, its error and, of several, the seed; None raises the error.
        num_sharers: processes of this machine that share the memory.
        on_event: called with every event.

    Returns:
        The folder of the results, and the trainings, to be called one after the other.
    """
    protocol = check_training(job)
    if cases is None:
        check_names(job.probes)
        cases = open_cases(job, job.data, on_event)
    request, backbone = open_model(job, job.model, job.weights, on_event) if opened is None else opened
    named = list(choose(job, backbone))
    if not named:
        return job.runs_root, iter(())
    arrays = tuple(dict.fromkeys(array for one in named for array in one.arrays))
    work = request_extraction(job, request, backbone, arrays, cases.sources[0].pixel_rule, on_event)
    splits = [
        open_rows(
            source,
            job.cache_root,
            rule=job.rule if any(number in case.train.sources for case in cases.cases) else None,
            trust_files=job.trust_files,
            on_event=on_event,
        )
        for number, source in enumerate(cases.sources)
    ]
    for rows in splits:
        report_data(rows, on_event)
    if job.may_extract:
        (work,) = settle_and_check_disk([work], splits)
        requests = work.extract(splits)
    else:
        work = work.settled(splits)
        requests = [work.tokens(rows) for rows in splits]
    return run_folder(job.runs_root, requests[0]), _trainings_of(
        job, cases, requests, named, protocol, work, num_sharers=num_sharers, fail=fail, on_event=on_event
    )


def _trainings_of(
    job: ProbeJob,
    cases: Cases,
    requests: Sequence[SplitRequest],
    named: Sequence[ProbeSpec],
    protocol: TrainingProtocol,
    work: RequestedExtraction,
    *,
    num_sharers: int,
    fail: Callable[..., None] | None,
    on_event: OnEvent,
) -> Iterator[Training]:
    """The trainings of each case, by each seed."""
    known, pairs = [one.record for one in requests], set()
    for case in cases.cases:
        train, test = (_request(requests, part, known) for part in (case.train, case.test))
        if (pair := (train.record.images.digest, test.record.images.digest)) not in pairs:
            pairs.add(pair)  # what is said of images is said once for all targets
            report_shared_images(train.record, test.record, on_event)
        if job.train_views is not None:
            train = train.with_views(min(job.train_views, train.num_views))
        train, test = (one.asked_for(job.metric, job.class_weights) for one in (train, test))
        yield from prepare_trainings(
            train,
            test,
            named,
            [replace(protocol, seed=seed) for seed in job.seeds],
            job.runs_root,
            target=case.target,
            part=None if case.subset is None else case.subset.key_value(known),
            config=work.description(),
            device=work.backbone.device,
            retrain=job.retrain,
            verify=job.may_verify,
            memory=job.memory,
            num_sharers=num_sharers,
            fail=fail,
            on_event=on_event,
        )


def _request(requests: Sequence[SplitRequest], part: Part, known: Sequence[SplitRecord]) -> SplitRequest:
    """The tokens of a part: those of its sources, whatever store they lie in."""
    return replace(requests[int(part.sources[0])], record=part.record(known))


def report_shared_images(train: SplitRecord, test: SplitRecord, on_event: OnEvent) -> None:
    """Report test images that are training images."""
    shared = duplicates_of(train, test)
    if shared.pairs:
        on_event(
            SharedImages(
                train=f"{train.name}/{train.split}",
                test=f"{test.name}/{test.split}",
                num_shared=len(shared.pairs),
                num_test=shared.num_test,
                num_relabelled=shared.num_relabelled,
            )
        )


def prepare_trainings(
    train: SplitRequest,
    test: SplitRequest,
    named: Sequence[ProbeSpec],
    protocols: Sequence[TrainingProtocol],
    runs_root: Path,
    *,
    target: str | None = None,
    part: Mapping[str, Any] | None = None,
    config: dict[str, Any],
    device: torch.device,
    retrain: bool = False,
    verify: bool = True,
    memory: str | None = None,
    num_sharers: int = 1,
    fail: Callable[..., None] | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[Training]:
    """The trainings of probes on tokens that are there, one by each protocol; for the arguments see `ProbeJob`."""
    check = cache(partial(verify_tokens, [train, test]))  # once for all seeds, and not at all if every row is there
    for protocol in protocols:
        yield partial(
            probe,
            train,
            test,
            named,
            protocol,
            run_folder(runs_root, train),
            target=target,
            part=part,
            config=config,
            retrain=retrain,
            memory_bytes=memory_for_probes(memory, num_sharers),
            device=device,
            before_training=check if verify else (lambda: None),
            fail=None if fail is None else partial(fail, seed=protocol.seed if len(protocols) > 1 else None),
            on_event=on_event,
        )
