"""The doctor names what is wrong and what to do, whatever else is broken; each check is shown its bad case."""

from __future__ import annotations

import errno
import http.server
import json
import os
import resource
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import MODEL, run
from own_mounts import in_own_mounts
from photos import write_photos
from token_stores import write_store

from layerbank.cache import TokenCache
from layerbank.cache.locking import worker_file
from layerbank.data.sources import BadImage
from layerbank.data.views import ViewedSource
from layerbank.doctor import OK, PROBLEM, WARNING, Finding, disk, guarded, machine
from layerbank.doctor.hub import check_hub
from layerbank.doctor.libraries import check_imports, check_operators, check_versions
from layerbank.doctor.machine import (
    check_cores,
    check_gpu,
    check_memory,
    check_open_files,
    check_shared_memory,
    check_threads,
)
from layerbank.doctor.stores import check_stores

ROOT = Path(__file__).parent.parent


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def one(findings: list[Finding], state: str) -> Finding:
    (found,) = [finding for finding in findings if finding.state == state]
    return found


@pytest.mark.usefixtures("offline")
def test_a_sound_machine_has_no_problem_and_exit_code_0(tmp_path: Path) -> None:
    result = run("doctor", "--cache", tmp_path / "caches", "--json")
    findings = json.loads(result.stdout)
    assert [finding for finding in findings if finding["state"] == PROBLEM] == []
    assert result.exit_code == 0
    assert {
        "python",
        "libraries",
        "imports",
        "torch with torchvision",
        "cores",
        "memory",
        "cache: speed",
        "stores",
    } <= {finding["name"] for finding in findings}
    assert list(tmp_path.iterdir()) == []
    table = run("doctor", "--cache", tmp_path / "caches").stdout.splitlines()
    assert table[0].split() == ["what", "state", "found", "what", "to", "do"]
    assert len(table) >= len(findings)


def doctor_with(packages: Path, cache: Path) -> tuple[int, dict[str, dict[str, str]]]:
    """The doctor in a process where these packages come first."""
    environment = os.environ | {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
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
    for name in ("python", "libraries", "cores", "memory", "open files", "cache: locks", "stores", "hub"):
        assert findings[name]["state"] == OK, findings[name]
    assert "zarr" in findings["imports"]["found"]


def test_a_torchvision_of_another_torch_is_told_to_be_installed_together(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    program = (
        "from layerbank.doctor.libraries import *; import json; "
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


def test_packages_that_are_missing_or_too_old_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    missing, old, rest = check_versions(
        ["not-there>=1.2", "zarr>=99.1", "numpy>=1.26", "onnx>=99; extra == 'demo'", "torch>=2.6"]
    )
    assert missing == Finding("not-there", PROBLEM, "not installed", "Install it: pip install 'not-there>=1.2'.")
    assert old.todo == "99.1 is the oldest that works: pip install --upgrade 'zarr>=99.1'."
    assert rest.state == OK
    assert "onnx" not in rest.found
    assert len(check_versions()) == 1  # what is installed here is what the project asks for
    monkeypatch.setattr("layerbank.doctor.libraries.requires", _not_installed)
    assert one(check_versions(), PROBLEM).todo == "Install it: pip install -e . in its folder."


def _not_installed(name: str) -> Any:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_a_module_that_is_not_there_is_told_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_here.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    assert one(check_imports(["half_here"]), PROBLEM).todo == "Install what is missing: pip install not_there_at_all."
    assert check_operators()[0].state == OK


def fake_torch(**changes: Any) -> Any:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update.")

    cuda = SimpleNamespace(is_available=lambda: False, init=init)
    version = SimpleNamespace(cuda=changes.pop("build", "12.4"))
    backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: changes.get("mps", False)))
    return SimpleNamespace(cuda=cuda, version=version, backends=backends, __version__="2.9")


def test_a_gpu_that_torch_cannot_use_is_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_cores_that_a_container_does_not_give_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_cores", lambda: 8)
    assert check_cores(tmp_path)[0].state == OK
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert check_cores(tmp_path)[0].state == OK
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (finding,) = check_cores(tmp_path)
    assert finding.found.endswith("but a control group gives the time of 2.5")
    assert finding.todo == "Threads beyond that only wait: set OMP_NUM_THREADS=2."
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert "the time of 1.5" in check_cores(tmp_path)[0].found


def test_thread_variables_that_slow_torch_down_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    assert check_threads({})[0].state == check_threads({"OMP_NUM_THREADS": "4"})[0].state == OK
    few, many = check_threads({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "64"})
    assert few.found == "OMP_NUM_THREADS=1, with 4 cores: only so many are used on a CPU"
    assert many.found == "MKL_NUM_THREADS=64, with 4 cores: more threads than cores wait for each other"
    assert many.todo == "Unset MKL_NUM_THREADS."
    assert check_threads({"OMP_NUM_THREADS": "all"})[0].found == "OMP_NUM_THREADS=all is no number of threads"


def test_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 10**9)
    assert one(check_memory(), WARNING).found == "1.0 GB can be had"


def test_a_low_limit_of_open_files_is_told() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
        finding = one(check_open_files(), WARNING)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert finding.found == "at most 512"
    assert "ulimit -n " in finding.todo


SMALL_DISKS = """
import json, sys
from pathlib import Path
from layerbank.doctor.disk import check_disk
from layerbank.doctor.machine import check_shared_memory
small, read_only = map(Path, sys.argv[1:])
print(json.dumps([*check_shared_memory(small), *check_disk(small / "caches"), *check_disk(read_only)]))
"""


def test_real_small_volatile_and_read_only_disks_are_told(tmp_path: Path) -> None:
    for name in ("small", "ro"):
        (tmp_path / name).mkdir()
    (tmp_path / "program.py").write_text(SMALL_DISKS)
    script = 'mount -t tmpfs -o size=64m tmpfs "$2"; mount -t tmpfs -o ro tmpfs "$3"; "$1" "$4" "$2" "$3"'
    (line,) = in_own_mounts(script, *(str(tmp_path / name) for name in ("small", "ro", "program.py")))
    shared, space, kind, *works, read_only = (Finding(*values) for values in json.loads(line))
    assert (shared.state, shared.found) == (WARNING, f"67.1 MB free in {tmp_path / 'small'}")
    assert "docker run --shm-size 1g" in shared.todo
    assert "--workers 0" in shared.todo
    assert (space.name, space.state) == ("cache: space", WARNING)
    assert (kind.state, kind.found) == (WARNING, "tmpfs, in memory")
    assert [finding.state for finding in works] == [OK] * 4
    assert (read_only.state, read_only.found) == (
        PROBLEM,
        f"{tmp_path / 'ro'} cannot be written: Read-only file system",
    )
    assert check_shared_memory(tmp_path / "absent")[0].state == OK


@pytest.mark.parametrize(
    ("kind", "state"), [("ext4", OK), ("nfs4", WARNING), ("fuse.sshfs", WARNING), ("tmpfs", WARNING)]
)
def test_the_kind_of_file_system_is_that_of_the_last_mount_above_the_folder(
    tmp_path: Path, kind: str, state: str
) -> None:
    place = tmp_path / "with space"
    place.mkdir()
    escaped = str(place.resolve()).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext3 rw 0 0\nother {escaped} xfs rw 0 0\nserver:/x {escaped} {kind} rw 0 0\n")
    finding = disk.check_kind(place, mounts)
    assert (finding.state, finding.found.split(",")[0]) == (state, kind)
    assert disk.check_kind(place, tmp_path / "absent").state == OK


def test_a_slow_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WRITTEN_BYTES", 1 << 20)
    monkeypatch.setattr(os, "fsync", lambda fd: time.sleep(0.12))
    finding = disk.check_speed(tmp_path)
    assert finding.state == WARNING
    assert "put the stores on a local disk with --cache" in finding.todo


def refuse(code: int) -> Any:
    def refusing(*arguments: Any, **more: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return refusing


def test_a_file_system_that_keeps_no_promise_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.EINVAL))
        assert disk.check_rename(tmp_path).found == "[Errno 22] Invalid argument"
    with monkeypatch.context() as patch:
        patch.setattr(disk.mmap, "mmap", refuse(errno.ENODEV))
        finding = disk.check_map(tmp_path)
        assert (finding.state, finding.found) == (PROBLEM, "[Errno 19] No such device")
    import fcntl

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
        assert disk.check_lock(tmp_path).found == "there are none: No locks available"
        patch.setattr(fcntl, "flock", lambda *arguments: None)
        lax = disk.check_lock(tmp_path)
        assert (lax.state, lax.found) == (WARNING, "two holders at one time")
        assert lax.todo.startswith("Never let two processes extract into one store here")
    for check in (disk.check_rename, disk.check_map, disk.check_lock):
        assert check(tmp_path).state == OK


def test_an_unfinished_store_is_told_with_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "my photos", {"train": 200})
    root = tmp_path / "caches"
    options = ("--split", "train", "--levels", "last", "--views", "1", "--no-view-flip", "--tap", "block")
    original = ViewedSource.load

    def load(source: ViewedSource, row: int) -> Any:
        if row >= 1100:
            raise BadImage(id="x", file="x.png", reason="the disk was unplugged")
        return original(source, row)

    with monkeypatch.context() as patch:
        patch.setattr(ViewedSource, "load", load)
        assert run("extract", *MODEL, "--data", f"folder:{photos}", "--cache", root, *options).exit_code == 1
    finding = one(check_stores(root), WARNING)
    assert "unfinished, 4 of 5 blocks, and nobody writes it" in finding.found
    command = shlex.split(finding.todo)
    assert command[:2] == ["layerbank", "extract"]
    result = run(*command[1:], "--workers", "0")
    assert result.exit_code == 0, result.output
    assert [finding.state for finding in check_stores(root)] == [OK]
    (store,) = root.rglob("*.zarr")
    assert TokenCache.open(store).num_rows == 1200


def test_stores_that_cannot_be_read_and_leftovers_are_told(tmp_path: Path) -> None:
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
    assert "--overwrite" in unreadable.todo
    lock, trial = (finding for finding in findings if finding.name == "leftover")
    assert lock.found == f"{worker_file(store, 1)}: the lock of a worker that was killed"
    assert lock.todo == f"layerbank cache gc --cache {tmp_path} --delete"
    assert trial.found.endswith("of a plan that was killed")
    assert one(findings, OK).found == f"1 complete under {tmp_path}"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("online")
def test_a_hub_that_answers_anything_is_reached(hub: str) -> None:
    assert check_hub(hub) == [Finding("hub", OK, f"{hub} answers")]


@pytest.mark.usefixtures("online")
def test_a_hub_out_of_reach_is_a_warning_within_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        slow = one(check_hub(address, timeout_s=0.2), WARNING)
        assert time.monotonic() - began < 5
    refused = one(check_hub(address), WARNING)
    assert "cannot be reached (" in slow.found
    assert "Connection refused" in refused.found
    assert "HF_HUB_OFFLINE=1" in refused.todo


@pytest.mark.usefixtures("offline")
def test_offline_the_hub_is_not_asked() -> None:
    assert check_hub("http://127.0.0.1:1")[0].found.startswith("not asked, because of HF_HUB_OFFLINE")


def test_a_check_that_fails_is_a_finding() -> None:
    def check() -> list[Finding]:
        raise ZeroDivisionError("at the bottom\nof something")

    (finding,) = guarded("cores", check)
    assert (finding.name, finding.state, finding.found) == ("cores", PROBLEM, "ZeroDivisionError: at the bottom")
