"""What a person sees: progress, tables and errors. Progress and errors go to stderr, answers to stdout.

On a terminal progress is one moving line; elsewhere (a log, a pipe) it is a plain line every ten seconds. This module and
`cli.py`, `commands/` are the only ones that know rich and click.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .events import (
    BatchHalved,
    CacheReused,
    ClusterBusy,
    ClusterJoined,
    CompileFailed,
    Event,
    ExtractionFinished,
    ExtractionProgress,
    ExtractionStarted,
    ImageSkipped,
    MemoryPlanned,
    ParityMeasured,
    PrecisionAdvice,
    PrecisionFellBack,
    PrecisionFollowed,
    ProbeFinished,
    ProbeProgress,
    ProbeStarted,
    ReportStep,
    ShareFinished,
    StudyFailed,
    StudyShortOfRoom,
    StudyUnit,
    StudyUnitAgain,
    StudyUnitFinished,
    TokensOutOfRange,
    TrainingStarted,
    UploadFailed,
    WorkerLost,
)
from .extraction.meter import limit_of
from .probing.results import describe_choice
from .quantities import size

__all__ = ["Listener", "part_of_study", "print_table", "print_lines", "print_json", "print_error", "size"]

PLAIN_LINE_EVERY_S = 10.0
WIDEST = 1000  # characters of a table that is not shown on a terminal


class Listener:
    """Shows events as they come; use it as a context manager and pass `listener.show` to a stage."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._began = self._last_plain = time.monotonic()
        self._last_done = 0
        self._told_out_of_range: dict[str, int] = {}

    def __enter__(self) -> Listener:
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, event: Event) -> None:
        """One event."""
        match event:
            case ExtractionStarted():
                self._say(
                    f"extract: {event.num_pending:,} of {event.num_rows:,} images of {event.dataset}/{event.split} through "
                    f"{event.backbone} ({event.precision} on {event.device}{', compiled' * event.compiled}, "
                    f"batches of {event.batch_size}, "
                    f"{event.num_arrays} arrays) -> {event.store}"
                )
                self._begin(f"extract {event.split}", event.num_pending)
            case PrecisionAdvice():
                self._say(
                    f"extract: this CPU multiplies {event.speedup:.1f} times as fast in {event.precision}: "
                    f"--precision {event.precision} is worth a try"
                )
            case CompileFailed():
                self._say(f"extract: warning: {event.backbone} could not be compiled and runs without: {event.reason}")
            case BatchHalved():
                self._say(
                    f"extract: warning: {event.backbone}: {event.reason}; from here on {event.num_images} images at a time"
                )
            case ExtractionProgress():
                self._advance(event.num_done, event.num_pending, _extraction_note(event))
            case ExtractionFinished():
                self._end()
                rate = event.num_computed / event.elapsed_s if event.elapsed_s else 0.0
                self._say(
                    f"extract: done, {event.num_computed:,} images in {event.elapsed_s:.1f} s ({rate:.1f} images/s; "
                    f"{_shares(event)}), {size(event.size_bytes)} of tokens"
                )
            case ShareFinished():
                self._say(
                    f"extract: worker {event.worker} has done its share; {event.store} is not complete: "
                    f"{event.num_missing:,} rows of other workers are missing. Run the other shards, or the same command without "
                    "--shard for all the rest"
                )
            case WorkerLost():
                self._say(
                    f"extract: warning: worker {event.worker} was lost ({event.reason}); "
                    f"{event.num_left} left to take over its rows{', and another begins' * event.is_replaced}"
                )
            case ClusterJoined():
                gpus = f"{_count(event.num_gpus, 'GPU')} and " * bool(event.num_gpus)
                self._say(
                    f"ray: {_count(event.num_nodes, 'machine')}, {_count(event.num_workers, 'worker')} at a time with "
                    f"{gpus}{_count(event.num_cpus, 'core')} each"
                )
            case ClusterBusy():
                workers = _count(event.num_workers, "worker")
                self._say(
                    f"ray: warning: after {event.waited_s:.0f} s none of {workers} has begun: the cluster has no room now; waiting"
                )
            case CacheReused():
                self._say(f"extract: nothing to do, {event.num_rows:,} rows are in {event.store}")
            case ImageSkipped():
                self._say(f"extract: skipped image {event.sample_id!r} in {event.file}: {event.reason}")
            case ParityMeasured():
                self._say(_parity(event))
            case PrecisionFellBack():
                self._say(
                    f"extract: warning: {event.backbone} overflows in {event.asked} at {event.level} of the first images of "
                    f"{event.split} ({event.num_nonfinite:,} values not finite): it runs in {event.used}"
                )
            case PrecisionFollowed():
                self._say(
                    f"extract: warning: {event.backbone} runs in {event.used}, not {event.asked}, on {', '.join(event.splits)}: "
                    f"another split has its store in {event.used}, {event.store}. For {event.asked} extract them together"
                )
            case TokensOutOfRange():
                self._tell_out_of_range(event)
            case ProbeStarted():
                shape = " x ".join(map(str, event.token_shape))
                self._say(f"probe {event.probe}: {event.num_settings} settings on {event.num_rows:,} rows of {shape}")
            case TrainingStarted():
                if len(event.probes) > 1:
                    passes = "" if event.num_passes == 1 else f" in {event.num_passes} passes"
                    self._say(f"probes {', '.join(event.probes)}: {event.num_settings} settings train together{passes}")
                self._begin(_few_names(event.probes), 1)
            case MemoryPlanned():
                self._say(_memory(event))
            case UploadFailed():
                self._say(
                    f"probe {', '.join(event.probes)}: warning: {event.reason}: {size(event.tokens_bytes)} of tokens do not fit "
                    "into memory any more and are streamed from the store"
                )
            case ProbeProgress():
                self._advance(event.step, event.num_steps, _training_note(event))
            case ProbeFinished():
                self._end()
                self._say(_finished(event))
            case ReportStep():
                self._say(f"report: {event.what} ({event.done + 1} of {event.total})")
            case StudyShortOfRoom():
                self._say(
                    f"study: warning: {_count(event.num_units, 'unit')} still to extract: {size(event.needed_bytes)} of tokens at "
                    f"least, {size(event.free_bytes)} free on the disk of {event.cache_root}: free "
                    f"{size(event.needed_bytes - event.free_bytes)} before the last ones, or give another disk with --cache"
                )
            case StudyUnit():
                self._say(f"study: {event.model} on {event.dataset}")
            case StudyUnitFinished():
                failures = f", {event.num_failures} failed" if event.num_failures else ""
                self._say(
                    f"study: {event.num_done} of {event.num_units} done: {event.model} on {event.dataset}, "
                    f"{event.num_rows} rows{failures}"
                )
            case StudyUnitAgain():
                self._say(
                    f"study: warning: the worker of {event.model} on {event.dataset} was lost ({event.reason}); another goes on"
                )
            case StudyFailed():
                self._end()
                part = part_of_study(event.model, event.dataset, event.probe, event.seed)
                self._say(
                    f"study: failed, {part}: {event.where}: expected {event.expected}, got {event.got}. {event.todo}"
                )

    def _tell_out_of_range(self, event: TokensOutOfRange) -> None:
        """Once an array, and again whenever its count has grown tenfold."""
        count = event.num_saturated + event.num_nonfinite
        if count >= 10 * self._told_out_of_range.get(event.array, 0):
            self._told_out_of_range[event.array] = count
            self._say(
                f"extract: warning: {event.array}: {event.num_saturated:,} values beyond {event.storage_dtype} "
                f"(stored as its largest number), {event.num_nonfinite:,} not finite"
            )

    def _say(self, line: str) -> None:
        self._console.print(Text(line))

    def _begin(self, description: str, total: int) -> None:
        self._end()  # several models begin together and share one line
        self._began = self._last_plain = time.monotonic()
        self._last_done = 0
        if self._progress is not None:
            self._task = self._progress.add_task(description, total=total, note="")

    def _advance(self, done: int, total: int, note: str) -> None:
        if done < self._last_done:  # another phase
            self._began = time.monotonic()
        self._last_done = done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() - self._last_plain > PLAIN_LINE_EVERY_S:
            self._last_plain = time.monotonic()
            left_s = (time.monotonic() - self._began) * (total - done) / max(done, 1)
            self._say(f"  {note}; {left_s:.0f} s left")

    def _end(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, *, num_left: int = 2
) -> None:
    """A table on stdout; the first columns are aligned left, the others right. A log or a pipe gets it in full width."""
    console = Console(highlight=False, soft_wrap=True)
    if title:
        console.print(Text(title))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < num_left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if console.is_terminal:
        console.print(table, soft_wrap=False)
        return
    console.width = Measurement.get(console, console.options.update(width=WIDEST), table).maximum
    with console.capture() as capture:
        console.print(table, soft_wrap=False)
    print_lines(line.rstrip() for line in capture.get().splitlines())  # or an empty last cell is as wide as the others


def print_lines(lines: Iterable[str]) -> None:
    """Plain lines on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(Text(line))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    Console(highlight=False, soft_wrap=True).print(Text(json.dumps(value, indent=2, ensure_ascii=False)))


def print_error(where: str, parts: Mapping[str, str]) -> None:
    """An error on stderr: where, then one line a part."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("layerbank: ", "bold red"), where))
    for name, text in parts.items():
        console.print(Text(f"  {name:<9} {text}"))


def part_of_study(model: str, dataset: str, probe: str | None, seed: int | None) -> str:
    """
    >>> part_of_study("vit", "cars", "alf", 1), part_of_study("vit", "cars", None, None)
    ('vit on cars, alf, seed 1', 'vit on cars')
    """
    return f"{model} on {dataset}" + (f", {probe}" if probe else "") + ("" if seed is None else f", seed {seed}")


def _shares(event: ExtractionProgress | ExtractionFinished) -> str:
    total = max(event.elapsed_s, 1e-9)
    parts = (("decoding", event.decode_s), ("computing", event.compute_s), ("writing", event.write_s))
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts)
    return f"{shares}; {limit_of(event)}"


def _extraction_note(event: ExtractionProgress) -> str:
    rate = event.num_done / max(event.elapsed_s, 1e-9)
    return f"{event.num_done:,}/{event.num_pending:,}, {rate:.1f} images/s; {_shares(event)}"


def _parity(event: ParityMeasured) -> str:
    what = (
        f"what storing as {event.storage_dtype} rounds away"
        if event.compute_dtype == "float32"
        else f"{event.compute_dtype}, stored as {event.storage_dtype}, against float32"
    )
    return (
        f"extract: {event.split}: {what}, on {event.num_images} images: least cosine {event.cosine_min:.6g} at "
        f"{event.cosine_level}, largest relative error {event.max_relative_error:.2g} at {event.error_level}; "
        f"{event.num_saturated:,} values saturated, {event.num_nonfinite:,} not finite"
    )


def _count(number: int, name: str) -> str:
    """
    >>> _count(1, "core"), _count(2, "core")
    ('1 core', '2 cores')
    """
    return f"{number} {name}{'s' * (number != 1)}"


def _few_names(probes: Sequence[str]) -> str:
    """
    >>> _few_names(("alf",)), _few_names(("alf", "aat", "linear-cls"))
    ('probe alf', '3 probes')
    """
    return f"probe {probes[0]}" if len(probes) == 1 else f"{len(probes)} probes"


def _training_note(event: ProbeProgress) -> str:
    rate = "" if event.probe_steps_per_s is None else f", {event.probe_steps_per_s:,.0f} probe steps/s"
    best = "" if event.best is None else f", best validation {100 * event.best:.1f} %"
    return f"{event.phase}: step {event.step:,}/{event.num_steps:,} of {event.num_probes} probes{rate}{best}"


def _memory(event: MemoryPlanned) -> str:
    banks = "one bank" if event.num_banks == 1 else f"{event.num_banks} banks, one after the other,"
    groups = f" in groups of {event.group_size}, {event.chunk_size} images at a time" if event.group_size else ""
    memory = "the GPU's memory" if event.on_gpu else "memory"
    where = "streamed from the store" if event.tokens == "streamed" else f"in {memory}"
    return (
        f"probe {event.probe}: {banks} of {event.probes_at_once} probes{groups}; {size(event.tokens_bytes)} of tokens "
        f"{where}; at most {size(event.planned_bytes)} of {size(event.budget_bytes)}{' there' if event.on_gpu else ''}"
    )


def _finished(event: ProbeFinished) -> str:
    row: Any = event.row
    again = " (from results.jsonl, not trained again)" if event.reused else ""
    if row["test"] is None:
        return f"probe {event.probe}: every setting diverged{again}"
    validation, test = row["validation"], row["test"]["balanced_accuracy"]
    beside = f" ({what})" if (what := describe_choice(row)) else ""
    return f"probe {event.probe}{beside}: validation {100 * validation:.1f}, test {100 * test:.1f} % balanced accuracy{again}"
