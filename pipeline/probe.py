"""Stage two: train the asked-for probes from two stores and keep what they found.

For every probe: read its tokens from the train store, let `probes.run_sweep` do the protocol (split, grid, choose on
validation, refit, test once), save the trained probe, its attention and one row of results. The test store is opened by the
sweep at its last step and not before. A row that stands in results.jsonl under the same key is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cache import CacheSpec, DamagedStoreError, TokenCache, verify_store
from probes import (
    SOLVED_KINDS,
    BatchPlan,
    Head,
    LookingProbe,
    MemoryPlan,
    Progress,
    SweepResult,
    TokenSource,
    TrainingProtocol,
    resolve_compute,
    run_solver,
    run_sweep,
    save_probe,
)

from .attention import keep_attention
from .datasets import ImageSource
from .errors import RequestError
from .events import Emit, MemoryPlanned, ProbeFinished, ProbeProgress, ProbeStarted, ignore
from .memory import memory_for_probes
from .placement import SMALLEST_BUFFER_BYTES, Placement, place_tokens
from .probe_names import NamedProbe
from .probe_sizes import head_of
from .results import Row, append_row, key_of, read_rows
from .streaming import StreamedTokens
from .token_source import CachedTokens, require_arrays


class Store(NamedTuple):
    """Where a split's tokens lie, and what they must be."""

    path: Path
    spec: CacheSpec


def run_folder(runs_root: Path, train: Store) -> Path:
    """The folder of everything learnt from a train store: RUNS/<data set>/<name of the store>."""
    return runs_root / train.spec.dataset / train.path.stem


def check_classes(train: ImageSource, test: ImageSource) -> None:
    """Raise RequestError unless the splits have labels, and both name the same classes in the same order."""
    if not train.class_names:
        raise RequestError(
            where=f"data {train.name}/{train.split}",
            expected="images with labels, to train probes on",
            got="images without",
            todo="Give labelled data: folder:DIR, wds:DIR or hdf5:FILE.",
        )
    if list(train.class_names) != list(test.class_names):
        raise RequestError(
            where=f"classes of {test.name}/{test.split}",
            expected=f"those of {train.name}/{train.split}, in order: {_few(train.class_names)}",
            got=_few(test.class_names),
            todo="Give both splits the same class folders or classnames.txt.",
        )


def verify_arrays(stores: Sequence[Store], arrays: Sequence[tuple[str, str]]) -> None:
    """Read the token arrays that are about to be used, and all that belongs to every store, against their checksums.

    Raises:
        DamagedStoreError: a file is not as it was written; says which rows of which level and kind.
    """
    for path, _ in stores:
        damages = verify_store(path, only=arrays)
        if damages:
            raise DamagedStoreError(
                where=str(path),
                expected="every file as it was written",
                got="; ".join(map(str, damages[:3])) + (f" and {len(damages) - 3} more" if len(damages) > 3 else ""),
                todo=f"Mend it: layerbank cache repair {path} (only those rows are computed again).",
            )


def probe(
    train: Store,
    test: Store,
    named_probes: Sequence[NamedProbe],
    protocol: TrainingProtocol,
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    retrain: bool = False,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    emit: Emit = ignore,
) -> list[Row]:
    """Train probes and return their rows, in the order asked for.

    Args:
        train, test: stores of the two splits, by the same backbone.
        named_probes: what to train.
        protocol: grid, schedule, seed.
        folder: where results.jsonl goes, and a folder a row: probe, test predictions, attention map.
        config: what is needed to run the backbone again, kept with every saved probe.
        retrain: compute rows again even if they are there.
        memory_bytes: what this may take of the host's memory beside what the program has already; None is 80 % of what is free.
        device: where probes are trained.
        emit: told what happens.

    Raises:
        RequestError: a store lacks a level or kind.
        CacheError: a store is incomplete, damaged, or holds something else.
        SettingError: not even one probe at a time fits into the memory, or the device cannot compute as the protocol says.
    """
    protocol = replace(protocol, compute=resolve_compute(protocol.compute, device))
    memory_bytes = memory_for_probes(None) if memory_bytes is None else memory_bytes
    cache = TokenCache.open(train.path, train.spec)
    for named in named_probes:
        require_arrays(list(cache.arrays), named, train.path)
    known = {row["key"]: row for row in read_rows(folder / "results.jsonl")}
    rows = []
    for named in named_probes:
        setting = _setting(train, test, protocol)
        decisive = replace(protocol, compute="float32") if named.head in SOLVED_KINDS else protocol  # they are float64
        key = key_of({**_setting(train, test, decisive), "probe": asdict(named)})
        reused = key in known and not retrain
        if not reused:
            row = {"key": key, "setting_of_study": key_of(setting), "probe": named.name}
            changed = replace(protocol, **named.protocol)  # type: ignore[arg-type]  # checked by TrainingProtocol
            place = row_folder(folder, row)
            row |= _train(cache, test, named, changed, place, config or {}, memory_bytes, torch.device(device), emit)
            known[key] = append_row(folder / "results.jsonl", row)
        rows.append(known[key])
        emit(ProbeFinished(probe=named.name, row=known[key], reused=reused))
    return rows


def row_folder(folder: Path, row: Row) -> Path:
    """Where the probe, the predictions and the picture of a row lie: two settings of one probe never share it."""
    return folder / f"{row['probe']}-{row['key'][:8]}"


def _setting(train: Store, test: Store, protocol: TrainingProtocol) -> dict[str, Any]:
    """Everything but the probe that decides a result."""
    return {"train": train.spec.fingerprint, "test": test.spec.fingerprint, "protocol": asdict(protocol)}


def _train(
    cache: TokenCache,
    test: Store,
    named: NamedProbe,
    protocol: TrainingProtocol,
    folder: Path,
    config: dict[str, Any],
    memory_bytes: int,
    device: torch.device,
    emit: Emit,
) -> Row:
    tokens = CachedTokens(cache, named)
    head = head_of(named, tokens.token_shape[0])
    opened: list[TokenSource] = []
    test_ids: list[str] = []

    def open_test() -> TokenSource:
        test_tokens = CachedTokens(TokenCache.open(test.path, test.spec), named)
        test_ids.extend(test_tokens.sample_ids)
        opened.append(StreamedTokens(test_tokens, buffer_bytes=SMALLEST_BUFFER_BYTES, pin=device.type == "cuda"))
        return opened[0]

    solved = named.head in SOLVED_KINDS
    emit(
        ProbeStarted(
            probe=named.name,
            num_settings=len(protocol.solved_settings(head) if solved else protocol.settings(head)),
            num_rows=len(tokens.labels),
            token_shape=tokens.token_shape,
        )
    )
    relay = _relay(named.name, emit)
    if solved:
        memory: dict[str, Any] = {"tokens": "resident"}
        result = run_solver(head, tokens.in_memory(), open_test, protocol, emit=relay)
    else:
        placement = place_tokens(tokens, head, protocol, memory_bytes, device)
        memory = placement.describe()
        if placement.plan is not None:
            emit(_planned(named.name, tokens, placement, placement.plan))
        result = run_sweep(
            head,
            placement.open(tokens),
            open_test,
            protocol,
            memory_bytes=None if placement.plan is None else placement.plan.budget_bytes,
            device=device,
            emit=relay,
        )
    attention = None  # where an attentive probe looks
    if result.probe is not None:
        _save(result, cache, named, head, folder, config)
        _save_predictions(result, opened[0], test_ids, folder)
        if isinstance(result.probe, LookingProbe):
            attention = _keep_attention(result.probe, opened[0], test_ids, cache, named, folder)
    return _row(result, cache.spec, test.spec, named, head, protocol) | {"memory": memory, "attention": attention}


def _planned(name: str, tokens: CachedTokens, placement: Placement, plan: MemoryPlan) -> MemoryPlanned:
    return MemoryPlanned(
        probe=name,
        budget_bytes=placement.budget_bytes,
        planned_bytes=placement.planned_bytes,
        tokens=placement.tokens,
        tokens_bytes=tokens.size_bytes(),
        num_banks=plan.num_banks,
        probes_at_once=plan.probes_at_once,
        group_size=plan.group_size,
        chunk_size=plan.chunk_size,
    )


def _relay(name: str, emit: Emit) -> Callable[[Progress], None]:
    def show(event: Progress) -> None:
        emit(
            ProbeProgress(
                probe=name,
                phase=event.phase,
                step=event.step,
                num_steps=event.num_steps,
                num_probes=event.num_probes,
            )
        )

    return show


def _save(
    result: SweepResult,
    cache: TokenCache,
    named: NamedProbe,
    head: Head,
    folder: Path,
    config: dict[str, Any],
) -> None:
    assert result.probe is not None
    about = {
        **config,
        "probe": asdict(named) | {"num_heads": head.num_heads},
        "class_names": cache.attributes["class_names"],
        "cache": cache.spec.to_dict(),
        "versions": {name: version(name) for name in ("layerbank", "torch", "timm", "open_clip_torch", "zarr")},
    }
    save_probe(folder, result.probe, about)


def _save_predictions(result: SweepResult, test: TokenSource, sample_ids: Sequence[str], folder: Path) -> None:
    """`test.npz`: sample_ids [N] text, labels [N] int64, logits [N, C] float32; read with numpy.load, nothing is pickled."""
    assert result.test_logits is not None
    aside = folder / ".test.npz"
    with aside.open("wb") as file:
        np.savez(file, sample_ids=np.array(sample_ids), labels=test.labels.numpy(), logits=result.test_logits.numpy())
    aside.replace(folder / "test.npz")


def _keep_attention(
    probe: LookingProbe,
    test: TokenSource,
    sample_ids: Sequence[str],
    cache: TokenCache,
    named: NamedProbe,
    folder: Path,
) -> dict[str, Any]:
    tokens_per_kind = [
        cache.arrays[named.levels[0], kind].row_shape[0] if kind not in ("cls", "ap") else 1 for kind in named.kinds
    ]
    title = f"{named.name} on {cache.spec.dataset} ({cache.spec.backbone}): where the test images are looked at"
    return keep_attention(probe, test, named, tokens_per_kind, sample_ids, folder, title)


def _row(
    result: SweepResult,
    train: CacheSpec,
    test: CacheSpec,
    named: NamedProbe,
    head: Head,
    protocol: TrainingProtocol,
) -> Row:
    """What results.jsonl keeps; accuracies in [0, 1], null where every setting diverged."""
    return {
        "backbone": train.backbone,
        "dataset": train.dataset,
        "train_fingerprint": train.fingerprint,
        "test_fingerprint": test.fingerprint,
        "head": named.head,
        "levels": list(named.levels),
        "kinds": list(named.kinds),
        "num_heads": head.num_heads or None,
        "normalize": named.normalize,
        "diverged": result.diverged,
        "chosen": None if result.chosen is None else asdict(result.chosen),
        "validation": result.validation,
        "test": None if result.test is None else asdict(result.test),
        "settings": [
            asdict(score.setting) | {"validation": score.validation, "num_steps": score.num_steps}
            for score in result.scores
        ],
        "num_parameters": result.num_parameters,
        "num_parameters_before_classifier": result.num_parameters_before_classifier,
        "selection": _plan(result.selection),
        "rungs": [asdict(rung) for rung in result.rungs],
        "probe_steps": sum(rung.probe_steps for rung in result.rungs),
        "refit": _plan(result.refit),
        "protocol": asdict(protocol),
        "compute": None if named.head in SOLVED_KINDS else protocol.compute,
        "seconds": {phase: round(seconds, 3) for phase, seconds in result.seconds.items()},
    }


def _plan(plan: BatchPlan | None) -> dict[str, int] | None:
    return None if plan is None else asdict(plan) | {"num_steps": plan.num_steps}


def _few(names: Sequence[str]) -> str:
    return f"{len(names)}: " + ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
