"""Every file that layerbank reads and somebody else may have written: how a sound one is made, and everything that reads it."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import safetensors.torch
import torch
from commands import MODEL, run
from damaged_runs import ARRAYS, line_of, report_quickly, show_on_a_terminal, with_array
from fuzzing import Parsed, dump
from photos import TINY_MODEL, write_photos
from PIL import Image
from study_runs import write_format_2
from sweeps import HEADS
from token_stores import make_arrays, make_rows, make_spec, wanted, write_images, write_store
from xxhash import xxh3_128_hexdigest

from layerbank.cache import (
    Target,
    TokenStore,
    export_hdf5,
    index,
    list_targets,
    read_target,
    repair_store,
    write_target,
)
from layerbank.cache.header import _with_checksum
from layerbank.cache.index import INDEX_FOLDER
from layerbank.cache.journal import JOURNAL_FOLDER, WORKER_FILE
from layerbank.cache.model_stores import ModelStores, known_hashes
from layerbank.cache.targets import POINTERS
from layerbank.cache.writing.checked_chunks import CHECKED_FILE
from layerbank.cache.writing.locking import LockOwner, lock_file, write_owner
from layerbank.data.image_set import identify
from layerbank.data.sources import open_source
from layerbank.data.splits.split_record import load_record
from layerbank.data.tars import samples
from layerbank.errors import LayerbankError
from layerbank.jobs.job import ExtractJob, Job, ProbeJob, StudyJob
from layerbank.jobs.recipe import open_recipe
from layerbank.models.trust import read_trust_file
from layerbank.models.weights import load_strictly
from layerbank.models.weights_file import read_state_dict
from layerbank.probes import BankKey, BankScores, LearningCurves, LinearProbe, Setting
from layerbank.probing.protocols import open_protocol
from layerbank.probing.rows.results_file import RESULTS, append_row, read_results
from layerbank.probing.rows.row_files import digest_files, row_folder
from layerbank.probing.sweep_journal import SweepJournal, clear_finished
from layerbank.report.verify import verify_runs

NUM_ROWS = 600
SPEC = make_spec(rows=make_rows(NUM_ROWS))


def refuse_as(*lines: tuple[object, ...]) -> None:
    """Run commands; raise the last of our errors that they ended with."""
    errors: list[BaseException] = []
    for line in lines:
        result = run(*line)
        error: BaseException | None = result.exception
        while error is not None and not isinstance(error, LayerbankError):
            error = error.__context__
        errors += [error] * (error is not None)
    if errors:
        raise errors[-1]


def try_each(*attempts: Callable[[], object]) -> None:
    """Make all attempts; raise the last of our errors."""
    errors = []
    for attempt in attempts:
        try:
            attempt()
        except LayerbankError as error:
            errors.append(error)
    if errors:
        raise errors[-1]


# -- stores


def a_store(folder: Path, *, num_batches: int | None = None) -> Path:
    store = write_images(folder, NUM_ROWS, make_arrays(kinds=("cls",)), num_batches=num_batches)
    target = Target(values=np.arange(NUM_ROWS) % 3, type="multiclass", class_names=("a", "b", "c"))
    write_target(store, "label", target, num_rows=NUM_ROWS)
    return store


def read_store(store: Path) -> None:
    root = store.parents[1]
    ids, sizes = [f"image {row}" for row in range(NUM_ROWS)], np.arange(NUM_ROWS)

    def find() -> None:
        stores = ModelStores(root, SPEC.model)
        stores.find(wanted(NUM_ROWS), [("norm2", "block.0", "cls")])
        known_hashes(root, SPEC.name, ids, sizes)

    def read() -> None:
        opened = TokenStore.open(store)
        for level, kind in opened.arrays:
            opened[level, kind].read(0, 1)
        opened.sample_ids[-1:]

    try_each(
        lambda: refuse_as(
            ("cache", "ls", "--cache", root),
            ("cache", "ls", "--cache", root, "--json"),
            ("cache", "info", store),
            ("cache", "info", store, "--json"),
            ("cache", "verify", store),
            ("cache", "gc", "--cache", root),
        ),
        find,
        read,
        lambda: [read_target(store, name, num_rows=NUM_ROWS) for name in list_targets(store)],
        lambda: export_hdf5(store, root / "x.h5"),
        lambda: run("cache", "merge", store, "--name", "again"),
        lambda: write_store(store, SPEC, make_arrays(kinds=("cls",)), rows=make_rows(NUM_ROWS)),
        lambda: repair_store(store, remove_foreign=True),
        lambda: run("cache", "repair", store),
    )


def of_store(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (file,) = a_store(folder).glob(name)
        return file

    return write


def store_of(read: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda file: read(next(one for one in file.parents if one.suffix == ".zarr"))


def seal_header(content: bytes) -> bytes:
    if b'"header_crc32c": "' not in content:
        return content
    blank = _with_checksum(content, 0)
    return _with_checksum(blank, google_crc32c.value(blank))


def render_header(content: bytes, values: Any) -> bytes:
    return dump(values, indent=2)


def seal_journal(content: bytes) -> bytes:
    lines = []
    for line in content.splitlines(keepends=True):
        _, mark, entry = line.partition(b'"entry":')
        if mark and entry.endswith(b"}\n"):
            line = b'{"crc32c":"%08x",' % google_crc32c.value(entry[:-2]) + mark + entry
        lines.append(line)
    return b"".join(lines)


def lines_of(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def render_lines(content: bytes, values: Any) -> bytes:
    how: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")}
    return b"".join(dump(one, **how) + b"\n" for one in values)


def render_journal(content: bytes, values: Any) -> bytes:
    with suppress(TypeError, AttributeError):
        return render_lines(content, values)
    return render_lines(content, [])


def read_metadata(file: Path) -> None:
    """A target's ``zarr.json``, also where the pointer has its checksum."""
    store = next(one for one in file.parents if one.suffix == ".zarr")
    pointer = store / POINTERS / "label.json"
    values = json.loads(pointer.read_bytes())
    pointer.write_text(json.dumps(values | {"metadata": f"{google_crc32c.value(file.read_bytes()):08x}"}))
    read_store(store)


def seal_chunk(content: bytes) -> bytes:
    return content[:-4] + google_crc32c.value(content[:-4]).to_bytes(4, "little")


def read_exported(file: Path) -> None:
    refuse_as(("cache", "import", file, "--cache", file.parent / "caches"))


def an_export(folder: Path) -> Path:
    export_hdf5(a_store(folder), folder / "store.h5")
    return folder / "store.h5"


def a_record_of_chunks(folder: Path) -> Path:
    store = a_store(folder, num_batches=9)
    a_store(folder, num_batches=0)  # reads what was committed
    return store / JOURNAL_FOLDER / CHECKED_FILE


def a_lock(folder: Path) -> Path:
    store = a_store(folder, num_batches=3)
    write_owner(lock_file(store), LockOwner.this_process("0/2"))
    return lock_file(store)


# -- arrays in one file with a checksum


def seal_arrays(content: bytes) -> bytes:
    first, newline, rest = content.partition(b"\n")
    if not newline or first.count(b" ") < 2:
        return content
    return first.rpartition(b" ")[0] + f" {xxh3_128_hexdigest(rest)}\n".encode() + rest


def arrays_values(content: bytes) -> Any:
    rest = content.partition(b"\n")[2]
    return json.loads(rest[8 : int.from_bytes(rest[:8], "little")])


def render_arrays_file(content: bytes, values: Any) -> bytes:
    first, _, rest = content.partition(b"\n")
    header = dump(values)
    data = rest[int.from_bytes(rest[:8], "little") :]
    return first + b"\n" + (8 + len(header)).to_bytes(8, "little") + header + data


def an_index(folder: Path) -> Path:
    index.SETTLED_NS = -(10**18)  # records of files that were written just now count
    write_photos(folder / "data", {"train": 3})
    identify(open_source(f"folder:{folder / 'data'}", "train"), folder / "cache")
    (file,) = (folder / "cache" / INDEX_FOLDER).iterdir()
    return file


def read_the_index(file: Path) -> None:
    folder = file.parents[2]
    identify(open_source(f"folder:{folder / 'data'}", "train"), folder / "cache")


def encoded(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "PNG")
    return content.getvalue()


def a_tar(folder: Path) -> Path:
    (folder / "train").mkdir(parents=True)
    with tarfile.open(folder / "train" / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            for name, content in ((f"é{number}.png", encoded(number)), (f"é{number}.cls", b"1")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "train" / "0.tar"


def read_tar(tar: Path) -> None:
    source = open_source(f"wds:{tar.parents[1]}", "train")
    identify(source, tar.parents[1] / "cache")
    for row in range(min(len(source), 10)):
        source.load(row)


def seal_tar(content: bytes) -> bytes:
    """Checksums of all headers that lie where headers lay."""
    blocks = [bytearray(content[start : start + 512]) for start in range(0, len(content), 512)]
    for block in blocks:
        if b"ustar" in block[250:270] and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def a_tar_index(folder: Path) -> Path:
    os.environ["XDG_CACHE_HOME"] = str((folder / "user").absolute())
    index.SETTLED_NS = -(10**18)
    tar = a_tar(folder)
    read_tar(tar)
    (file,) = folder.rglob(f"*{samples.SUFFIX}")
    return file


def read_tar_index(file: Path) -> None:
    folder = file.parents[3]
    os.environ["XDG_CACHE_HOME"] = str(folder / "user")
    read_tar(folder / "train" / "0.tar")


# -- runs


def a_row(folder: Path) -> Path:
    (file,) = write_format_2(folder / "runs").rglob(RESULTS)
    return file


def read_rows(file: Path) -> None:
    found = read_results(file)
    for row in found.rows:
        show_on_a_terminal([row])
    verify_runs(file.parents[2])
    append_row(file, {"key": "0"})
    report_quickly(pytest.MonkeyPatch(), file.parents[2])


def seal_rows(content: bytes) -> bytes:
    lines = []
    for line in content.splitlines():
        try:
            lines.append(line_of(json.loads(line)))
        except (ValueError, RecursionError, TypeError):
            lines.append(line)
    return b"".join(line + b"\n" for line in lines)


def of_a_row(name: str, probe: str = "alf") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        file = a_row(folder)
        (row,) = (row for row in read_results(file).rows if row["probe"] == probe)
        return row_folder(file.parent, row) / name

    return write


def read_row_file(file: Path) -> None:
    """A file of a row whose digest is right."""
    path = file.parent.parent / RESULTS
    rows = read_results(path).rows
    path.unlink()
    for row in rows:
        values = {name: value for name, value in row.items() if name != "digest"}
        if row_folder(path.parent, row) == file.parent:
            values["files"] = row["files"] | digest_files(file.parent, [file.name])
        append_row(path, values)
    verify_runs(path.parents[2])
    report_quickly(pytest.MonkeyPatch(), path.parents[2])


def other_arrays(content: bytes) -> Iterator[bytes]:
    with np.load(io.BytesIO(content)) as saved:
        names = list(saved)
    for name in names:
        for other in (
            *ARRAYS,
            None,
            b"no array",
            claimed_array((10**15,)),
            claimed_array((2**62, 2**62)),
            claimed_array((-1,)),
        ):
            yield with_array(content, name, other)


def claimed_array(shape: tuple[int, ...]) -> bytes:
    """The bytes of an array that is said to have another shape than it has."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}"
    head = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64)


def a_record(folder: Path) -> Path:
    file = a_row(folder)
    return file.parent / read_results(file).rows[0]["images"]["train"]


def read_record(file: Path) -> None:
    verify_runs(file.parents[2])
    load_record(file)


KEY = BankKey(candidate=HEADS["alf"], settings=(Setting(lr=0.1, weight_decay=0.0, dropout=0.0),), num_steps=4)


def journal_in(folder: Path) -> SweepJournal:
    return SweepJournal(folder, {}, lambda candidate: {}, ["row"])


def a_sweep_file(folder: Path) -> Path:
    steps, losses = torch.arange(2), torch.zeros(1, 2)
    scores = BankScores(
        accuracies=torch.zeros(1, dtype=torch.float64), curves=LearningCurves(steps=steps, losses=losses, lrs=losses)
    )
    journal_in(folder).keep(KEY, scores)
    (file,) = folder.iterdir()
    return file


def read_sweep_file(file: Path) -> None:
    journal_in(file.parent).find(KEY)
    clear_finished(file.parent, ["row"])


def a_probe(folder: Path) -> Path:
    """A run of the command: the probe and its attention map."""
    write_photos(folder / "photos", {"train": 6, "test": 2})
    (folder / "fast.toml").write_text(
        "epochs = 1\nmin_steps = 2\nlrs = [0.01]\nweight_decays = [1e-4]\ndropouts = [0.0]\n"
    )
    places = ("--cache", folder / "caches", "--runs", folder / "runs", "--protocol", folder / "fast.toml")
    result = run("probe", *MODEL, "--data", f"folder:{folder / 'photos'}", "--probe", "alf", *places)
    assert result.exit_code == 0, result.output
    (file,) = folder.rglob("probe.json")
    return file


def probe_file(name: str) -> Callable[[Path], Path]:
    return lambda folder: a_probe(folder).with_name(name)


def read_probe(file: Path) -> None:
    data = file.parents[4] / "photos"
    refuse_as(
        ("predict", "--probe", file.parent, "--data", f"folder:{data}", "--workers", "0", "--batch-size", "4"),
        ("attention", file.parent),
        ("attention", file.parent, "--json"),
    )


def safetensors_values(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def render_safetensors(content: bytes, values: Any) -> bytes:
    header = dump(values)
    return len(header).to_bytes(8, "little") + header + content[8 + int.from_bytes(content[:8], "little") :]


# -- weights, recipes, jobs, trust


WEIGHTS = LinearProbe(8, 3)


def weights_file(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir(parents=True)
        file, state = folder / name, WEIGHTS.state_dict()
        if file.suffix == ".safetensors":
            safetensors.torch.save_file(state, file)
        else:
            torch.save({"model": state, "epoch": 3}, file, _use_new_zipfile_serialization=file.suffix == ".zip")
        return file

    return write


def read_weights(file: Path) -> None:
    load_strictly(LinearProbe(8, 3), read_state_dict(str(file)), str(file))


def reseal_zip(content: bytes) -> bytes:
    """A zip archive whose members have the checksums that are said of them: changed data are believed then."""
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as again:
            for one in archive.infolist():
                start = one.header_offset + 30 + len(one.filename.encode()) + _extra_bytes(content, one.header_offset)
                again.writestr(one.filename, content[start : start + min(one.compress_size, len(content))])
    except (zipfile.BadZipFile, ValueError, NotImplementedError, IndexError, UnicodeError, OSError):
        return content
    return out.getvalue()


def _extra_bytes(content: bytes, offset: int) -> int:
    return int.from_bytes(content[offset + 28 : offset + 30], "little")


def a_recipe(folder: Path) -> Path:
    folder.mkdir(parents=True)
    values = StudyJob(
        models=[TINY_MODEL],
        data=["demo:digits", "cifar10"],
        probes=["linear-cls", "alf"],
        weights={TINY_MODEL: "random"},
    ).to_dict()
    (folder / "recipe.toml").write_bytes(toml({name: value for name, value in values.items() if value is not None}))
    return folder / "recipe.toml"


def a_protocol(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "protocol.toml").write_bytes(
        toml({"lrs": [0.1, 0.01], "weight_decays": [0.0], "epochs": 3, "sweep": "full"})
    )
    return folder / "protocol.toml"


def a_trust_file(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "trusted.toml").write_bytes(toml({"models": ["torchhub:facebookresearch/dinov2:dinov2_vits14"]}))
    return folder / "trusted.toml"


def toml(values: Any) -> bytes:
    """TOML of JSON values, as far as it can say them: a table is written in one line."""
    if not isinstance(values, dict):
        return dump(values)
    return b"".join(dump(str(name)) + b" = " + _inline(value) + b"\n" for name, value in values.items())


def _inline(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b", ".join(dump(str(name)) + b" = " + _inline(one) for name, one in value.items()) + b"}"
    if isinstance(value, list) and len(value) < 100:
        return b"[" + b", ".join(map(_inline, value)) + b"]"
    return dump(value)


def toml_values(content: bytes) -> Any:
    return tomllib.loads(content.decode())


def render_toml(content: bytes, values: Any) -> bytes:
    return toml(values)


JOBS: dict[str, Job] = {
    "extract": ExtractJob(data="folder:photos", models=[(TINY_MODEL, None)], kinds="cls"),
    "probe": ProbeJob(data="folder:photos", model=TINY_MODEL, probes=["alf"], seeds=range(3)),
    "study": StudyJob(models=[TINY_MODEL], data=["demo:digits"], probes=["linear-cls"]),
}


def a_job(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps(JOBS[kind].to_dict()))
        return folder / "job.json"

    return write


def read_job(kind: str) -> Callable[[Path], object]:
    """The caller reads the JSON; what it holds is ours to judge."""

    def read(file: Path) -> None:
        try:
            values = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            return
        type(JOBS[kind]).from_dict(values)

    return read


def of_json(**how: Any) -> dict[str, Any]:
    return {"values": json.loads, **how}


SEALED_ARRAYS: dict[str, Any] = {"seal": seal_arrays, "values": arrays_values, "render": render_arrays_file}
OF_STORE = store_of(read_store)
PARSED: dict[str, Parsed] = {
    "header": Parsed(write=of_store("zarr.json"), read=OF_STORE, **of_json(seal=seal_header, render=render_header)),
    "journal": Parsed(
        write=of_store(f"{JOURNAL_FOLDER}/{WORKER_FILE}"),
        read=OF_STORE,
        seal=seal_journal,
        values=lines_of,
        render=render_journal,
    ),
    "zarr.json of an array": Parsed(write=of_store("tokens/final/cls/zarr.json"), read=OF_STORE, **of_json()),
    "zarr.json of a target": Parsed(write=of_store("targets/label.*/zarr.json"), read=read_metadata, **of_json()),
    "values of a target": Parsed(write=of_store("targets/label.*/c.0"), read=OF_STORE, seal=seal_chunk),
    "pointer to a target": Parsed(write=of_store(f"{POINTERS}/label.json"), read=OF_STORE, **of_json()),
    "content hashes": Parsed(write=of_store("content_hashes/c.0"), read=OF_STORE, seal=seal_chunk),
    "checked chunks": Parsed(write=a_record_of_chunks, read=OF_STORE, **SEALED_ARRAYS),
    "lock": Parsed(write=a_lock, read=lambda file: read_store(file.with_suffix("")), **of_json()),
    "HDF5 export": Parsed(write=an_export, read=read_exported),
    "content index": Parsed(write=an_index, read=read_the_index, **SEALED_ARRAYS),
    "tar": Parsed(write=a_tar, read=read_tar, seal=seal_tar),
    "tar index": Parsed(write=a_tar_index, read=read_tar_index, **SEALED_ARRAYS),
    "results": Parsed(write=a_row, read=read_rows, seal=seal_rows, values=lines_of, render=render_lines),
    "test.npz": Parsed(write=of_a_row("test.npz"), read=read_row_file, seal=reseal_zip, contents=other_arrays),
    "attention.npz": Parsed(
        write=of_a_row("attention.npz"), read=read_row_file, seal=reseal_zip, contents=other_arrays
    ),
    "attention.csv": Parsed(write=of_a_row("attention.csv"), read=read_row_file),
    "probe.json in a report": Parsed(write=of_a_row("probe.json"), read=read_row_file, **of_json()),
    "split record": Parsed(write=a_record, read=read_record, seal=reseal_zip, contents=other_arrays),
    "sweep journal": Parsed(write=a_sweep_file, read=read_sweep_file, seal=reseal_zip, contents=other_arrays),
    "probe.json": Parsed(write=a_probe, read=read_probe, **of_json()),
    "attention.json": Parsed(write=probe_file("attention.json"), read=read_probe, **of_json()),
    "probe.safetensors": Parsed(
        write=probe_file("probe.safetensors"), read=read_probe, values=safetensors_values, render=render_safetensors
    ),
    "weights, safetensors": Parsed(
        write=weights_file("a.safetensors"), read=read_weights, values=safetensors_values, render=render_safetensors
    ),
    "weights, torch zip": Parsed(write=weights_file("a.zip"), read=read_weights, seal=reseal_zip),
    "weights, torch pickle": Parsed(write=weights_file("a.pth"), read=read_weights),
    "recipe": Parsed(write=a_recipe, read=lambda file: open_recipe(str(file)), values=toml_values, render=render_toml),
    "protocol": Parsed(
        write=a_protocol, read=lambda file: open_protocol(str(file), seed=0), values=toml_values, render=render_toml
    ),
    "trusted.toml": Parsed(write=a_trust_file, read=read_trust_file, values=toml_values, render=render_toml),
    **{f"{kind} job": Parsed(write=a_job(kind), read=read_job(kind), **of_json()) for kind in JOBS},
}
