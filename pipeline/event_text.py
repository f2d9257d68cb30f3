"""Events as lines for people: one function an event; an event without one has nothing to say in a log."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from . import events
from .extraction.meter import limit_of
from .probing.rows.results import BALANCED_ACCURACY, describe_choice, metric_named, metric_of
from .quantities import counted, few, size

UNREMARKABLE_COSINE = 0.999  # of tokens as they are stored, to those of a float32 run
LONG_S = 60.0  # of an extraction that is worth advice on how to make it shorter


@singledispatch
def text_of(event: events.Event) -> str:
    """What an event says, in one line; empty where it says nothing."""
    return ""


@text_of.register
def _(event: events.CopyStarted) -> str:
    return f"{event.url}: copying {counted(event.num_files, 'file')}, {size(event.size_bytes)}, to {event.folder}"


@text_of.register
def _(event: events.CopyProgress) -> str:
    rate = event.bytes_done / max(event.elapsed_s, 1e-9)
    return f"{event.num_done:,}/{event.num_files:,} files copied, {size(rate)}/s"


@text_of.register
def _(event: events.HashingStarted) -> str:
    return f"{event.dataset}/{event.split}: hashing {event.num_images:,} of {counted(event.num_rows, 'image')}"


@text_of.register
def _(event: events.HashingProgress) -> str:
    rate = event.bytes_done / max(event.elapsed_s, 1e-9)
    return f"{event.num_done:,}/{event.num_images:,} images hashed, {size(rate)}/s"


@text_of.register
def _(event: events.ImagesTrusted) -> str:
    images = counted(event.num_images, "image")
    return f"{event.dataset}/{event.split}: {images} trusted by name and size, without being read"


@text_of.register
def _(event: events.IndexIgnored) -> str:
    return f"warning: the content index {event.path} is ignored: {event.reason}; images are hashed again"


@text_of.register
def _(event: events.IndexNotKept) -> str:
    return (
        f"warning: the hashes of {event.dataset}/{event.split} cannot be kept, neither in the cache nor in the user's cache "
        f"folder ({event.reason}): the next command reads the images again"
    )


@text_of.register
def _(event: events.WeightsChosen) -> str:
    return f"{event.path}: the weights {event.key} are used, not {few(event.others)}; --weights-key chooses others"


@text_of.register
def _(event: events.ExtractionStarted) -> str:
    return (
        f"extract: {event.num_pending:,} of {counted(event.num_rows, 'image')} of {event.dataset}/{event.split} through "
        f"{event.backbone} ({event.precision} on {event.device}{', compiled' * event.compiled}, "
        f"batches of {event.batch_size}, {event.num_arrays} arrays) -> {event.store}"
    )


@text_of.register
def _(event: events.PrecisionAdvice) -> str:
    return (
        f"extract: this CPU multiplies {event.speedup:.1f} times as fast in {event.precision}: "
        f"try --precision {event.precision}"
    )


@text_of.register
def _(event: events.CompileFailed) -> str:
    return f"extract: warning: {event.backbone} could not be compiled and runs eagerly: {event.reason}"


@text_of.register
def _(event: events.BatchHalved) -> str:
    return f"extract: warning: {event.backbone}: {event.reason}; from here on {counted(event.num_images, 'image')} at a time"


@text_of.register
def _(event: events.ExtractionProgress) -> str:
    rate = event.num_done / max(event.elapsed_s, 1e-9)
    return f"{event.num_done:,}/{event.num_pending:,}, {rate:.1f} images/s; {_time_shares(event)}"


@text_of.register
def _(event: events.ExtractionFinished) -> str:
    rate = event.num_computed / event.elapsed_s if event.elapsed_s else 0.0
    return (
        f"extract: done, {counted(event.num_computed, 'image')} in {event.elapsed_s:.1f} s ({rate:.1f} images/s; "
        f"{_time_shares(event)}), {size(event.size_bytes)} of tokens"
    )


@text_of.register
def _(event: events.StoreRepaired) -> str:
    return (
        f"extract: warning: {event.store} is damaged: {counted(event.num_blocks, 'row block')} of {', '.join(event.arrays)} "
        "will be computed again"
    )


@text_of.register
def _(event: events.ShareFinished) -> str:
    return (
        f"extract: worker {event.worker} has finished its share; {event.store} is not complete: "
        f"{counted(event.num_missing, 'row')} of other workers still missing. Run the other shards, or the same command without "
        "--shard for the rest"
    )


@text_of.register
def _(event: events.WorkerLost) -> str:
    return (
        f"extract: warning: worker {event.worker} was lost ({event.reason}); "
        f"{event.num_left} left to take over its rows{', and another starts' * event.is_replaced}"
    )


@text_of.register
def _(event: events.ClusterJoined) -> str:
    gpus = f"{counted(event.num_gpus, 'GPU')} and " * bool(event.num_gpus)
    return (
        f"ray: {counted(event.num_nodes, 'machine')}, {counted(event.num_workers, 'worker')} at a time with "
        f"{gpus}{counted(event.num_cpus, 'core')} each"
    )


@text_of.register
def _(event: events.ClusterBusy) -> str:
    workers = counted(event.num_workers, "worker")
    return f"ray: warning: none of {workers} has started after {event.waited_s:.0f} s: the cluster is full; waiting"


@text_of.register
def _(event: events.RowsFound) -> str:
    what = counted(event.num_rows, "row" if event.num_views else "image")
    views = f" ({1 + event.num_views} views of each image)" if event.num_views else ""
    unreadable = f", {event.num_unreadable:,} unreadable" if event.num_unreadable else ""
    skipped = f" ({event.num_skipped:,} unreadable when they were extracted)" if event.num_skipped else ""
    return (
        f"extract: {event.dataset}/{event.split}, {what}{views}: {event.num_found:,} in the cache{skipped}, "
        f"{event.num_missing:,} to compute{unreadable} ({event.backbone})"
    )


@text_of.register
def _(event: events.StoresIgnored) -> str:
    stores = "; ".join(f"{path}: {reason}" for path, reason in event.reasons.items())
    return (
        f"warning: the cache has stores of {event.backbone} that cannot be read, their rows count as missing: {stores}"
    )


@text_of.register
def _(event: events.UnevenClasses) -> str:
    parts = (
        (event.untested, f"in {event.train} without images in {event.test}"),
        (event.untrained, f"in {event.test} without images in {event.train}"),
        (event.single, f"with a single image in {event.train}"),
    )
    return "warning: " + "; ".join(
        f"{counted(len(names), 'class', 'classes')} {what}: {few(names)}" for names, what in parts if names
    )


@text_of.register
def _(event: events.LookAlikeClasses) -> str:
    return (
        f"warning: {len(event.names):,} classes of {event.dataset}/{event.split} differ in case, spaces, Unicode form or leading "
        f"zeros alone: {few([ascii(name) for name in event.names])}"
    )


@text_of.register
def _(event: events.ImageSkipped) -> str:
    return f"extract: skipped image {event.sample_id!r} in {event.file}: {event.reason}"


@text_of.register
def _(event: events.FilesLeftOut) -> str:
    found = [f"{extension} ({count:,})" for extension, count in sorted(event.counts.items(), key=lambda one: -one[1])]
    return f"left out of {event.dataset}/{event.split}: {few(found)}"


@text_of.register
def _(event: events.TwoLabels) -> str:
    return (
        f"warning: {counted(event.num_images, 'image')} of {event.dataset}/{event.split} with the bytes of another image and "
        f"another label, {event.first} first"
    )


@text_of.register
def _(event: events.SharedImages) -> str:
    other = f", {event.num_relabelled:,} of them with another label" if event.num_relabelled else ""
    return (
        f"warning: {event.num_shared:,} of {counted(event.num_test, 'image')} of {event.test} are also in {event.train}{other}; "
        "`layerbank report` shows accuracies without them"
    )


@text_of.register
def _(event: events.FlatImages) -> str:
    return (
        f"warning: {counted(event.num_images, 'image')} of {event.dataset}/{event.split} with hardly any contrast "
        f"({event.first}{', ...' * (event.num_images > 1)}): fewer than 16 levels as 8-bit RGB. Look at some: "
        "a drawing on transparent ground may need another --background, values of more than 8 bits a ?range=LOW,HIGH in --data."
    )


@text_of.register
def _(event: events.ParityMeasured) -> str:
    if event.cosine_min >= UNREMARKABLE_COSINE and not event.num_saturated and not event.num_nonfinite:
        return ""  # `layerbank cache info` shows the numbers
    compared = (
        f"storage rounding error of {event.storage_dtype}"
        if event.compute_dtype == "float32"
        else f"{event.compute_dtype}, stored as {event.storage_dtype}, against float32"
    )
    return (
        f"extract: {event.split}: {compared}, on {counted(event.num_images, 'image')}: minimum cosine similarity "
        f"{event.cosine_min:.6g} at {event.cosine_level}, largest relative error {event.max_relative_error:.2g} at "
        f"{event.error_level}; {event.num_saturated:,} values saturated, {event.num_nonfinite:,} not finite"
    )


@text_of.register
def _(event: events.PrecisionFellBack) -> str:
    return (
        f"extract: warning: {event.backbone} overflows in float16 at {event.level} of the first images of "
        f"{event.split} ({event.num_nonfinite:,} values not finite): it runs in bfloat16"
    )


@text_of.register
def _(event: events.TokensOutOfRange) -> str:
    return (
        f"extract: warning: {event.array}: {event.num_saturated:,} values beyond {event.storage_dtype} "
        f"(stored as its largest number), {event.num_nonfinite:,} not finite"
    )


@text_of.register
def _(event: events.CopiesTogether) -> str:
    return (
        f"probe: {counted(event.num_images, 'image')} of {event.dataset}/{event.split}, byte-for-byte copies of another; "
        f"copies stay on one side of the validation split ({counted(event.num_moved, 'image')} moved)"
    )


@text_of.register
def _(event: events.ProbeStarted) -> str:
    shape = " x ".join(map(str, event.token_shape))
    return f"probe {event.probe}: {event.num_settings} settings on {event.num_rows:,} rows of {shape}"


@text_of.register
def _(event: events.TrainingStarted) -> str:
    if len(event.probes) == 1:
        return ""
    passes = "" if event.num_passes == 1 else f" in {event.num_passes} passes"
    return f"probes {', '.join(event.probes)}: {event.num_settings} settings train together{passes}"


@text_of.register
def _(event: events.MemoryPlanned) -> str:
    banks = "one bank" if event.num_banks == 1 else f"{event.num_banks} banks, one after the other,"
    groups = f" in groups of {event.group_size}, {event.chunk_size} images at a time" if event.group_size else ""
    memory = "GPU memory" if event.on_gpu else "memory"
    where = "streamed from the store" if event.tokens == "streamed" else f"in {memory}"
    trained = f"{banks} of {event.probes_at_once} probes{groups}; " if event.num_banks else ""
    return (
        f"probe {event.probe}: {trained}{size(event.tokens_bytes)} of tokens "
        f"{where}; at most {size(event.planned_bytes)} of {size(event.budget_bytes)}{' there' if event.on_gpu else ''}"
    )


@text_of.register
def _(event: events.UploadFailed) -> str:
    return (
        f"probe {', '.join(event.probes)}: warning: {event.reason}: {size(event.tokens_bytes)} of tokens do not fit "
        "into memory any more and are streamed from the store"
    )


@text_of.register
def _(event: events.ProbeProgress) -> str:
    rate = "" if event.probe_steps_per_s is None else f", {event.probe_steps_per_s:,.0f} probe steps/s"
    metric = metric_named(event.metric)
    best = (
        "" if event.best is None else f", best validation {metric.show(metric.of_validation(event.best))}{metric.unit}"
    )
    return f"{event.phase}: step {event.step:,}/{event.num_steps:,} of {event.num_probes} probes{rate}{best}"


@text_of.register
def _(event: events.ProbeAwaited) -> str:
    return f"probe {event.probe}: waiting for the row of {event.owner}"


@text_of.register
def _(event: events.ProbeFinished) -> str:
    row: Any = event.row
    reused = " (from results.jsonl, not trained again)" if event.reused else ""
    if row["test"] is None:
        return f"probe {event.probe}: every setting diverged{reused}"
    metric = metric_of(row)
    validation, test = metric.show(metric.of_validation(row["validation"])), metric.show(row["test"][metric.key])
    chosen = f" ({choice})" if (choice := describe_choice(row)) else ""
    named = "% balanced accuracy" if metric is BALANCED_ACCURACY else metric.title
    return f"probe {event.probe}{chosen}: validation {validation}, test {test} {named}{reused}"


@text_of.register
def _(event: events.ResultSkipped) -> str:
    return f"probe: warning: {event.where}: expected {event.expected}, got {event.got}. {event.todo}"


@text_of.register
def _(event: events.StudyShortOfDiskSpace) -> str:
    return (
        f"study: warning: {counted(event.num_units, 'unit')} still to extract: at least {size(event.needed_bytes)} of "
        f"tokens, {size(event.free_bytes)} free on the disk of {event.cache_root}: free "
        f"{size(event.needed_bytes - event.free_bytes)} before the last ones, or give another disk with --cache"
    )


@text_of.register
def _(event: events.StudyUnit) -> str:
    return f"study: {event.model} on {event.dataset}"


@text_of.register
def _(event: events.StudyUnitFinished) -> str:
    failures = f", {event.num_failures} failed" if event.num_failures else ""
    return (
        f"study: {event.num_done} of {event.num_units} done: {event.model} on {event.dataset}, "
        f"{event.num_rows} rows{failures}"
    )


@text_of.register
def _(event: events.StudyUnitAgain) -> str:
    return (
        f"study: warning: the worker of {event.model} on {event.dataset} was lost ({event.reason}); another takes over"
    )


@text_of.register
def _(event: events.StudyFailed) -> str:
    part = part_of_study(event.model, event.dataset, event.probe, event.seed)
    return f"study: failed, {part}: {event.where}: expected {event.expected}, got {event.got}. {event.todo}"


@text_of.register
def _(event: events.ReportStep) -> str:
    return f"report: {event.what} ({event.done + 1} of {event.total})"


def part_of_study(model: str, dataset: str, probe: str | None, seed: int | None) -> str:
    """
    >>> part_of_study("vit", "cars", "alf", 1), part_of_study("vit", "cars", None, None)
    ('vit on cars, alf, seed 1', 'vit on cars')
    """
    return f"{model} on {dataset}" + (f", {probe}" if probe else "") + ("" if seed is None else f", seed {seed}")


def _time_shares(event: events.ExtractionProgress | events.ExtractionFinished) -> str:
    total = max(event.elapsed_s, 1e-9)
    parts = (("decoding", event.decode_s), ("computing", event.compute_s), ("writing", event.write_s))
    limit = limit_of(event)
    shown = str(limit) if event.elapsed_s >= LONG_S else f"limit: {limit.what}"
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts) + f"; {shown}"
