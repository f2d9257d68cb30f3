"""The files of a probe: a folder with its weights, predictions, learning curves and attention map, and one row of results.

    probe.safetensors, probe.json   the probe, and what is needed to run it again
    test.npz                        sample_ids [N] text, labels [N] int64 or float64, or [N, K], logits [N, C] float32
    curves.npz                      of the P settings in row order: steps [K] int64, loss [P, K] and lr [P, K] float32, of the batch
                                    before the step; NaN where a halving sweep has no such point; of the final training refit_steps,
                                    refit_loss [1, K], refit_lr, and of an ensemble [k, K], a line a member; a post-hoc probe has
                                    these alone, its grid is that of its base
    levels.npz                      of a search for levels, what it was chosen by: labels [N] int64 of the held-out images, hits
                                    [L, N] bool, which of them the best set of each size got right
    attention.*                     see `attention.py`

Arrays are read with numpy.load, nothing is pickled. Where every setting diverged, the curves are all there is.

All files are on the disk before the row, which holds their digests, refers to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerbank.cache.atomic_files import sync_folder
from layerbank.probes import HEADS, BatchPlan, FusionHead, SettingScore, SweepResult, save_probe

from ..data.task_names import MULTICLASS
from .attention import keep_attention
from .probe_spec import ProbeSpec
from .rows.results import BALANCED_ACCURACY, Row, key_of, plain_values
from .rows.row_files import digest_files
from .rows.whole_files import save_arrays
from .tokens.placement import FEWEST_BUFFER_ROWS
from .tokens.split_tokens import SplitTokens
from .tokens.streaming import StreamedTokens
from .tokens.token_source import CachedTokens
from .training import Trained

CURVES = "curves.npz"
PACKAGES = ("torch", "timm", "open_clip_torch", "zarr")  # whose versions are kept with a probe, beside our own
ATTENTION_FILES = ("attention.json", "attention.npz", "attention.csv", "attention.png")
FILES = ("probe.safetensors", "probe.json", "test.npz", CURVES, "levels.npz", *ATTENTION_FILES)


def keep_probe(
    trained: Trained,
    train: SplitTokens,
    test: SplitTokens,
    folder: Path,
    config: dict[str, Any],
) -> Row:
    """Write the folder of a row and return the row, without its keys.

    Args:
        trained: the result of the probe.
        train, test: the tokens of the two splits.
        folder: folder of the row.
        config: what is needed to run the backbone again, kept with the probe.
    """
    result, named = trained.result, trained.candidate
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # of an earlier training, which may have left others
        (folder / name).unlink(missing_ok=True)
    attention = None  # the key numbers of an attentive probe's attention map
    if result.probe is not None:
        about = {
            **config,
            "probe": _plain(named) | {"num_heads": result.head.num_heads},
            "class_names": train.class_names,
            "task": train.task.fit(torch.from_numpy(train.trained_targets)).describe(),
            "dataset": train.record.dataset,
            "model_spec": train.model.to_dict(),
            "tap": train.request.tap,
            "versions": {"layerbank": version("layerbank")} | {name: version(name) for name in PACKAGES},
        }
        tokens = CachedTokens(test, named)
        save_probe(folder, result.probe, about, token_shape=tokens.token_shape)
        sample_ids = tokens.sample_ids
        assert result.test_logits is not None
        save_arrays(
            folder / "test.npz",
            sample_ids=np.array(sample_ids),
            labels=tokens.targets.numpy(),
            logits=result.test_logits.numpy(),
        )
        if isinstance(result.probe, FusionHead):
            tokens_per_kind = [
                train.arrays[named.levels[0], kind].row_shape[0] if kind not in ("cls", "ap") else 1
                for kind in named.kinds
            ]
            source = StreamedTokens(tokens, buffer_rows=FEWEST_BUFFER_ROWS)
            title = f"{named.name} on {train.record.dataset} ({train.model.name}): attention on the test images"
            attention = keep_attention(result.probe, source, named, tokens_per_kind, sample_ids, folder, title)
    if trained.held_out:
        save_arrays(folder / "levels.npz", **trained.held_out)
    curves = _save_curves(result, folder)
    for one in (folder, folder.parent):
        sync_folder(one)
    files = digest_files(folder, FILES)
    return _row(trained, train, test) | {"attention": attention, "curves": curves, "files": files}


def _save_curves(result: SweepResult, folder: Path) -> str | None:
    """The name of the file, None where nothing was trained."""
    arrays: dict[str, Tensor] = {}
    if result.curves is not None:
        arrays |= {"steps": result.curves.steps, "loss": result.curves.losses, "lr": result.curves.lrs}
    if result.refit_curves is not None:
        again = result.refit_curves
        arrays |= {"refit_steps": again.steps, "refit_loss": again.losses, "refit_lr": again.lrs}
    if not arrays:
        return None
    save_arrays(folder / CURVES, **{name: values.numpy() for name, values in arrays.items()})
    return CURVES


def _row(trained: Trained, train: SplitTokens, test: SplitTokens) -> Row:
    """A line of results.jsonl without its keys; scores are null where every setting diverged.

    A row without `task` is of multiclass; one without `metric` has scores in [0, 1], of which `balanced_accuracy` has chosen.
    """
    result, named = trained.result, trained.candidate
    task = {} if train.task.type == MULTICLASS else {"task": train.task.type}
    if train.task.metric != BALANCED_ACCURACY.key:
        task["metric"] = train.task.metric
    return task | {
        "backbone": train.model.name,
        "dataset": train.record.dataset,
        "train_fingerprint": fingerprint(train),
        "test_fingerprint": fingerprint(test),
        "head": named.head,
        "levels": list(named.levels),
        "kinds": list(named.kinds),
        "num_heads": result.head.num_heads or None,
        "normalize": named.normalize,
        "diverged": result.diverged,
        "chosen": None if result.chosen is None else asdict(result.chosen),
        "validation": result.validation,
        "test": result.test,
        "settings": _settings(result.scores),
        "candidate": named.name if trained.named.candidates else None,
        "candidates": [
            {"probe": one.name, "settings": _settings(scores)}
            for one, scores in zip(trained.named.candidates, result.candidate_scores, strict=False)
        ],
        "num_parameters": result.num_parameters,
        "num_parameters_before_classifier": result.num_parameters_before_classifier,
        "selection": _plan(result.selection),
        "rungs": [asdict(rung) for rung in result.rungs],
        "probe_steps": sum(rung.probe_steps for rung in result.rungs),
        "derived": trained.derived,
        "refit": _plan(result.refit),
        "protocol": plain_values(asdict(trained.protocol)),
        "compute": None if HEADS[named.head].is_solved else trained.protocol.compute,
        "cost": _cost(trained, train),
        "seconds": {phase: round(seconds, 3) for phase, seconds in result.seconds.items()},
        "memory": trained.memory,
    }


def _cost(trained: Trained, train: SplitTokens) -> dict[str, int]:
    """The cost of the training, and the number of tokens that the probe reads of an image."""
    result = trained.result
    num_refits = 0 if result.refit is None else trained.num_refits
    refit_steps = 0 if result.refit is None else num_refits * result.refit.num_steps
    shapes = [train.arrays[array].row_shape for array in trained.candidate.arrays]
    return {
        "trainings": sum(rung.num_settings for rung in result.rungs) + num_refits,
        "probe_steps": sum(rung.probe_steps for rung in result.rungs) + refit_steps,
        "tokens_read": sum(prod(shape[:-1]) for shape in shapes),
    }


def fingerprint(tokens: SplitTokens) -> str:
    """32 hex digits: the digest of the model and of the images of a split."""
    return key_of({"model": tokens.model.digest, "images": tokens.record.images.digest})


def _settings(scores: Sequence[SettingScore]) -> list[dict[str, Any]]:
    return [asdict(score.setting) | {"validation": score.validation, "num_steps": score.num_steps} for score in scores]


def _plan(plan: BatchPlan | None) -> dict[str, int] | None:
    return None if plan is None else asdict(plan) | {"num_steps": plan.num_steps}


def _plain(named: ProbeSpec) -> dict[str, Any]:
    """A probe as `ProbeSpec.from_dict` reads it, without its family."""
    values = asdict(named)
    del values["candidates"], values["derived"]
    return values
