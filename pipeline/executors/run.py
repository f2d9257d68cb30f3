"""Run a job: one function for all kinds, in this process or in the workers of an executor."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from layerbank.cache import Worker

from ..errors import RequestError, WorkError
from ..events import OnEvent, ignore
from ..extraction.extract import extract_together
from ..jobs.extract import extract_share, folders_of, prepare, prepare_shares
from ..jobs.job import ExtractJob, ProbeJob, StudyJob
from ..jobs.probe import prepare_probes
from ..models.families import models_with_code
from ..models.trust import CodePermission
from .executor import Executor
from .studies import run_study
from .workers import run_in_worker, run_workers


def run(
    job: ExtractJob | ProbeJob | StudyJob, *, executor: Executor | None = None, on_event: OnEvent = ignore
) -> list[Any]:
    """Do a job.

    Args:
        job: what to do: an extraction, probes, or a study.
        executor: `LocalExecutor` or `RayExecutor`, which runs it in several workers; None runs it in this process. A `ProbeJob` is
            always run in this process.
        on_event: called with every event.

    Returns:
        of an extraction, the folders of the stores; of probes and of a study, their rows of results.

    Raises:
        RequestError: the job is wrong.
        WorkError: a part of a study failed; the rows of the others are in results.jsonl.

    >>> import tempfile, layerbank as lb
    >>> folder = tempfile.mkdtemp()
    >>> job = lb.ExtractJob(
    ...     data="demo:digits?train=40&test=20", models=(("timm/vit_tiny_patch16_224", "random"),), image_size=32,
    ...     levels="last", cache_root=folder, device="cpu",
    ... )
    >>> len(lb.run(job)), lb.ExtractJob.from_dict(job.to_dict()).levels
    (1, 'last')
    """
    match job:
        case ExtractJob():
            return run_extraction(job, executor=executor, on_event=on_event)
        case ProbeJob():
            rows = []
            for training in prepare_probes(job, on_event=on_event)[1]:
                rows += training()
            return rows
        case StudyJob():
            found, failures = run_study(job, executor=executor, on_event=on_event)
            if failures:
                first = failures[0]
                raise WorkError("executors.study_failed", count=len(failures), first=f"{first.where}: {first.got}")
            return list(found)
        case _:
            raise RequestError("executors.not_a_job", type=type(job).__name__)


def run_extraction(
    job: ExtractJob, *, executor: Executor | None = None, worker: Worker | None = None, on_event: OnEvent = ignore
) -> list[str]:
    """Do an extraction; return the folder of the stores of each model.

    Args:
        job: what to extract.
        executor: runs it in several workers that share the rows.
        worker: which of several workers this process is itself.
        on_event: called with every event.
    """
    if executor is None:
        prepared = prepare(job, on_event, worker)
        for rows, extractions in prepared:
            extract_together(extractions, rows, on_event=on_event)
        return folders_of(prepared)
    permission = CodePermission(job.allow_code)
    job = replace(job, allow_code=models_with_code([model for model, _ in job.models], permission))
    if executor.device is None:
        share = prepare_shares(job, on_event)
    else:  # there, because the device that settles the precision is there
        share = run_in_worker(partial(prepare_shares, replace(job, device=executor.device)), executor, on_event)
    run_workers(partial(extract_share, share), executor, on_event)
    return list(share.folders)
