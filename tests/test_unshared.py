"""A node that does not see the driver's folders, or not its locks, is refused before it writes anything: in mount namespaces."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import MODEL, run
from messages import raises, refuses
from photos import write_photos
from ray_nodes import nodes, options, wait_until

from layerbank.cache import Worker, offer_test_lock
from layerbank.errors import RequestError
from layerbank.events import ignore
from layerbank.jobs.extract import extract_share, prepare_shares

NOTHING = "true"
EMPTY = "mount -t tmpfs none {folder}"
WITHOUT_LOCKS = (  # the same files, until somebody opens one to write: then a copy
    "mount -t tmpfs none {beside} && mkdir {beside}/upper {beside}/work && "
    "mount -t overlay none -o lowerdir={folder},upperdir={beside}/upper,workdir={beside}/work {folder}"
)


@dataclass(frozen=True)
class Machine:
    """Commands run as on another machine, where a folder is not what it is here."""

    folder: Path
    beside: Path
    mount: str

    def command(self, *words: object) -> list[str]:
        mount = self.mount.format(folder=self.folder, beside=self.beside)
        return ["unshare", "-m", "sh", "-c", f"{mount} && exec {shlex.join(map(str, words))}"]


@pytest.fixture
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    made = Machine(tmp_path / "caches", tmp_path / "beside", request.param)
    made.folder.mkdir()
    made.beside.mkdir()
    if shutil.which("unshare") is None or subprocess.run(made.command("true"), capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    return made


SEE = """
import sys
from pathlib import Path
from layerbank.cache import check_test_lock
print(check_test_lock(Path(sys.argv[1]), 0.2))
"""


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (NOTHING, "None"),
        (EMPTY, "another folder of that name, or none"),
        (WITHOUT_LOCKS, "the same folder, without the locks that others hold in it"),
    ],
    indirect=["machine"],
    ids=["shared", "empty", "without locks"],
)
def test_a_node_says_whether_it_sees_the_folder_and_the_locks_in_it(machine: Machine, said: str) -> None:
    with offer_test_lock(machine.folder) as file:
        command = machine.command(sys.executable, "-c", SEE, file)
        answer = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert answer.stdout.strip() == said, answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("machine", [EMPTY], indirect=True, ids=["empty"])
def test_a_node_without_the_folder_ends_the_command_and_nothing_is_written_elsewhere(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 4})
    with nodes((0,)) as cluster:
        start = Path(sys.executable).with_name("ray")
        node = subprocess.Popen(
            machine.command(start, "start", "--address", cluster.address, "--num-cpus", "1", "--block"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: num_cores(cluster.address) == 1, patience_s=120)
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            result = run("extract", *MODEL, "--data", f"folder:{photos}", "--engine", "ray", "--cache", machine.folder)
        finally:
            node.terminate()
            node.wait(60)
    refuses(result, "executors.folder_not_shared", folder=machine.folder)
    assert list(machine.folder.iterdir()) == []


def num_cores(address: str) -> float:
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions

    state = GlobalState()
    state._initialize_global_state(GcsClientOptions.create(address, None, True, False))
    return sum(node["Resources"].get("CPU", 0) for node in state.node_table() if node["Alive"])


def test_a_worker_for_which_the_same_names_are_other_images_is_refused_before_it_makes_a_store(tmp_path: Path) -> None:
    photos, root = write_photos(tmp_path / "photos", {"train": 4}), tmp_path / "caches"
    share = prepare_shares(options(photos, root), ignore)
    next(photos.rglob("*.png")).unlink()
    with raises("jobs.worker_has_other_files", RequestError, worker=Worker(1, 2)):
        extract_share(share, Worker(1, 2), ignore)
    assert not list(root.glob("*/*.zarr"))
