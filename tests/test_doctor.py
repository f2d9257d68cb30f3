"""The doctor names what is wrong and what to do, whatever else is broken; each check is shown its bad case."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import MODEL, run
from own_mounts import in_own_mounts
from photos import write_photos
from plugins import install_plugin
from token_stores import write_store

from layerbank.cache import TokenStore
from layerbank.cache.writing.locking import worker_file
from layerbank.data.selected_source import SelectedSource
from layerbank.data.sources import BadImage
from layerbank.doctor import OK, PROBLEM, WARNING, Finding, disk, guarded
from layerbank.doctor.device import check_gpu
from layerbank.doctor.packages import check_imports, check_operators, check_plugins, check_versions
from layerbank.doctor.stores import check_stores
from layerbank.registry import Registry

ROOT = Path(__file__).parent.parent


def one(findings: list[Finding], state: str) -> Finding:
    (found,) = [finding for finding in findings if finding.state == state]
    return found


def test_a_sound_machine_has_no_problem_and_exit_code_0(tmp_path: Path) -> None:
    result = run("doctor", "--cache", tmp_path / "caches", "--json")
    findings = json.loads(result.stdout)
    assert [finding for finding in findings if finding["state"] == PROBLEM] == []
    assert result.exit_code == 0
    names = (
        "python",
        "packages",
        "imports",
        "torch with torchvision",
        "plug-ins",
        "cache: space",
        "cache: locks",
        "stores",
    )
    assert {*names} <= {finding["name"] for finding in findings}
    assert list(tmp_path.iterdir()) == []
    table = run("doctor", "--cache", tmp_path / "caches").stdout.splitlines()
    assert table[0].split() == ["what", "state", "found", "what", "to", "do"]
    assert len(table) >= len(findings)


def doctor_with(packages: Path, cache: Path) -> tuple[int, dict[str, dict[str, str]]]:
    """The doctor in a process where these packages come first."""
    environment = os.environ | {"PYTHONPATH": str(packages)}
    command = [sys.executable, "-m", "layerbank", "doctor", "--cache", str(cache), "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=cache)
    return result.returncode, {finding["name"]: finding for finding in json.loads(result.stdout)}


def test_a_torch_that_cannot_be_loaded_is_named_and_hides_no_other_check(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise ImportError('libcudart.so.13: cannot open shared object file')"
    )
    code, findings = doctor_with(tmp_path, tmp_path)
    assert code == 1
    broken = findings["import torch"]
    assert (broken["state"], broken["found"]) == (PROBLEM, "libcudart.so.13: cannot open shared object file")
    assert broken["todo"] == "Install it anew: pip install --force-reinstall torch."
    assert findings["torch with torchvision"]["state"] == PROBLEM
    assert findings["GPU"]["state"] == WARNING
    for name in ("python", "packages", "cache: locks", "stores"):
        assert findings[name]["state"] == OK, findings[name]
    assert "zarr" in findings["imports"]["found"]


def test_a_torchvision_of_another_torch_is_reported_to_be_installed_together(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    program = (
        "from layerbank.doctor.packages import *; import json; "
        "print(json.dumps([*check_imports(['torchvision']), *check_operators()]))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    imported, _, called = (Finding(*finding) for finding in json.loads(said))
    for finding in (imported, called):
        assert (finding.state, finding.found) == (PROBLEM, "operator torchvision::nms does not exist")
        assert "in one command and from one place: pip install --force-reinstall torch torchvision." in finding.todo


def test_packages_that_are_missing_or_too_old_are_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    python, missing, old, rest = check_versions(
        ["not-there>=1.2", "zarr>=99.1", "numpy>=1.26", "onnx>=99; extra == 'demo'", "torch>=2.6"]
    )
    assert missing == Finding("not-there", PROBLEM, "not installed", "Install it: pip install 'not-there>=1.2'.")
    assert old.todo == "99.1 is the oldest that works: pip install --upgrade 'zarr>=99.1'."
    assert rest.state == OK
    assert "onnx" not in rest.found
    assert python.state == OK
    assert len(check_versions()) == 2  # what is installed here is what the project asks for
    monkeypatch.setattr("layerbank.doctor.packages.requires", _not_installed)
    assert one(check_versions(), PROBLEM).todo == "Install it: pip install -e . in its folder."


def _not_installed(name: str) -> Any:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_a_module_that_is_not_there_is_reported_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_here.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    assert one(check_imports(["half_here"]), PROBLEM).todo == "Install what is missing: pip install not_there_at_all."
    assert check_operators()[0].state == OK


def test_a_plug_in_that_cannot_be_used_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin(tmp_path, "[layerbank.numbers]\ntau = zippy:TAU\nlost = zippo:X\n", "TAU = 6.28\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("layerbank.numbers", "number", float, {"pi": "math:pi"})
    monkeypatch.setattr("layerbank.doctor.packages.NUMBERS", registry, raising=False)
    (finding,) = check_plugins(["layerbank.doctor.packages:NUMBERS"])
    assert (finding.name, finding.state) == ("plug-in lost", WARNING)
    assert finding.found.startswith("number: zippy (zippo:X): ModuleNotFoundError")
    assert check_plugins([])[0].state == OK


def fake_torch(**changes: Any) -> Any:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update.")

    cuda = SimpleNamespace(is_available=lambda: False, init=init)
    version = SimpleNamespace(cuda=changes.pop("build", "12.4"))
    backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: changes.get("mps", False)))
    return SimpleNamespace(cuda=cuda, version=version, backends=backends, __version__="2.9")


def test_a_gpu_that_torch_cannot_use_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert check_gpu(fake_torch(), tmp_path)[0] == Finding("GPU", OK, "none seen, computing on the CPU")
    assert check_gpu(fake_torch(mps=True), tmp_path)[0].found == "Apple's (mps)"
    (tmp_path / "nvidiactl").touch()
    (driver,) = check_gpu(fake_torch(), tmp_path)
    assert driver.state == PROBLEM
    assert "cannot use: The NVIDIA driver on your system is too old (found version 11040)." in driver.found
    assert driver.todo.startswith("The driver has to be new enough for CUDA 12.4: update it")
    (build,) = check_gpu(fake_torch(build=None), tmp_path)
    assert (build.state, build.found) == (WARNING, "there is one, but torch 2.9 is a build without CUDA")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert one(check_gpu(fake_torch(), tmp_path), WARNING).found == "hidden by CUDA_VISIBLE_DEVICES=''"


@pytest.mark.parametrize(
    ("product", "state", "found"),
    [
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            PROBLEM,
            "no kernel image",
        ),
        (511.0, PROBLEM, "a product came out wrong"),
        (512.0, OK, "H100, 80.0 GB, CUDA 12.4"),
    ],
)
def test_a_gpu_has_to_multiply(product: float | Exception, state: str, found: str, tmp_path: Path) -> None:
    class Ones:
        def __matmul__(self, other: Any) -> Any:
            if isinstance(product, Exception):
                raise product
            return SimpleNamespace(sum=lambda: product)

    torch = fake_torch()
    torch.ones = lambda *shape, device: Ones()
    torch.cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda number: SimpleNamespace(name="H100", total_memory=80e9),
    )
    (finding,) = check_gpu(torch, tmp_path)
    assert (finding.name, finding.state) == ("GPU cuda:0", state)
    assert found in finding.found


SMALL_DISKS = """
import json, sys
from pathlib import Path
from layerbank.doctor.disk import check_disk
small, read_only = map(Path, sys.argv[1:])
print(json.dumps([*check_disk(small / "caches"), *check_disk(read_only)]))
"""


def test_real_small_and_read_only_disks_are_reported(tmp_path: Path) -> None:
    for name in ("small", "ro"):
        (tmp_path / name).mkdir()
    (tmp_path / "program.py").write_text(SMALL_DISKS)
    script = 'mount -t tmpfs -o size=64m tmpfs "$2"; mount -t tmpfs -o ro tmpfs "$3"; "$1" "$4" "$2" "$3"'
    (line,) = in_own_mounts(script, *(str(tmp_path / name) for name in ("small", "ro", "program.py")))
    space, *works, read_only = (Finding(*values) for values in json.loads(line))
    assert (space.name, space.state) == ("cache: space", WARNING)
    assert [finding.state for finding in works] == [OK] * 3
    assert (read_only.state, read_only.found) == (
        PROBLEM,
        f"{tmp_path / 'ro'} cannot be written: Read-only file system",
    )


def refuse(code: int) -> Any:
    def refusing(*arguments: Any, **more: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return refusing


def test_a_file_system_without_rename_maps_or_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def finding(name: str) -> Finding:
        return {one.name: one for one in disk.check_file_system(tmp_path)}[f"cache: {name}"]

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.EINVAL))
        renamed = finding("rename and fsync")
        assert (renamed.state, renamed.found) == (PROBLEM, "[Errno 22] Invalid argument")
    with monkeypatch.context() as patch:
        patch.setattr(disk.mmap, "mmap", refuse(errno.ENODEV))
        mapped = finding("memory map")
        assert (mapped.state, mapped.found) == (PROBLEM, "[Errno 19] No such device")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
        locked = finding("locks")
        assert (locked.state, locked.found) == (PROBLEM, "[Errno 37] No locks available")
        patch.setattr(fcntl, "flock", lambda *arguments: None)
        lax = finding("locks")
        assert (lax.state, lax.found) == (WARNING, "two holders at one time")
        assert lax.todo.startswith("Never let two processes extract into one store here")
    assert [one.state for one in disk.check_file_system(tmp_path)] == [OK] * 3


def test_an_unfinished_store_is_reported_with_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "my photos", {"train": 200})
    root = tmp_path / "caches"
    options = ("--split", "train", "--levels", "last", "--views", "1", "--no-view-flip", "--tap", "block")
    original = SelectedSource.load

    def load(source: SelectedSource, row: int) -> Any:
        if row >= 1100:
            raise BadImage(id="x", file="x.png", reason="the disk was unplugged")
        return original(source, row)

    with monkeypatch.context() as patch:
        patch.setattr(SelectedSource, "load", load)
        assert run("extract", *MODEL, "--data", f"folder:{photos}", "--cache", root, *options).exit_code == 1
    finding = one(check_stores(root), WARNING)
    assert "unfinished, 4 of 5 row blocks, and no process writes it" in finding.found
    command = shlex.split(finding.todo)
    assert command[:2] == ["layerbank", "extract"]
    result = run(*command[1:], "--workers", "0")
    assert result.exit_code == 0, result.output
    assert [finding.state for finding in check_stores(root)] == [OK]
    (store,) = root.rglob("*.zarr")
    assert TokenStore.open(store).num_rows == 1200


def test_stores_that_cannot_be_read_and_leftovers_are_reported(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store)
    worker_file(store, 1).write_text("{}")
    (tmp_path / ".layerbank-trial-x").mkdir()
    write_store(tmp_path / "b.zarr")
    header = tmp_path / "b.zarr" / "zarr.json"
    header.write_text(header.read_text().replace("resize 32", "resize 64"))
    findings = check_stores(tmp_path)
    unreadable = one(findings, PROBLEM)
    assert unreadable.found == f"{tmp_path / 'b.zarr'}: an altered file"
    assert "makes the header again" in unreadable.todo
    lock, trial = (finding for finding in findings if finding.name == "leftover")
    assert lock.found == f"{worker_file(store, 1)}: the lock of a worker that was killed"
    assert lock.todo == f"layerbank cache gc --cache {tmp_path} --delete"
    assert trial.found.endswith("left by a plan that was killed")
    assert one(findings, OK).found == f"1 complete under {tmp_path}"


def test_a_check_that_fails_is_a_finding() -> None:
    def check() -> list[Finding]:
        raise ZeroDivisionError("at the bottom\nof something")

    (finding,) = guarded("GPU", check)
    assert (finding.name, finding.state, finding.found) == ("GPU", PROBLEM, "ZeroDivisionError: at the bottom")
