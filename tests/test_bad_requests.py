"""Every bad request and every kind of data has the exit code and the answer that the tables say, and none a traceback."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_requests import FILES, bad_requests
from commands import MODEL, run
from data_situations import SITUATIONS
from photos import write_photos

REQUESTS = tuple(bad_requests())
LONGEST = 6000  # characters of an answer, its usage and its lists included


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder with data, a store, a trained probe, and files that are none of these."""
    folder = tmp_path_factory.mktemp("bad")
    write_photos(folder / "photos", {"train": 6, "test": 3})
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    data = ("--data", f"folder:{folder / 'photos'}", "--cache", folder / "caches", "--runs", folder / "runs")
    made = run("probe", *MODEL, *data, "--probe", "ridge-cls")
    assert made.exit_code == 0, made.output
    store, probe = next(folder.glob("caches/*/*-train-*.zarr")), next(folder.glob("runs/*/*/ridge-cls-*"))
    return {"folder": str(folder), "photos": "photos", "runs": "runs", "store": str(store), "probe": str(probe)}


def test_the_readme_counts_them() -> None:
    """At least 300 requests and 65 situations, all different."""
    assert len({arguments for _, arguments, _, _ in REQUESTS}) == len(REQUESTS) >= 300
    assert len({name for name, *_ in SITUATIONS}) == len(SITUATIONS) >= 65
    text = (Path(__file__).parent.parent / "pipeline" / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Wrong requests")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    counted = {cells[0].partition(":")[0]: [int(cell) for cell in cells[1:]] for cells in lines if cells[1].isdigit()}
    requests = Counter(kind for kind, *_ in REQUESTS)
    data = Counter((name.partition(":")[0], code) for name, _, _, code, _ in SITUATIONS)
    codes = {source: [data[source, code] for code in range(3)] for source, _ in data}
    assert counted == {kind: [number] for kind, number in requests.items() if kind != "data"} | {
        source: [sum(numbers), *numbers] for source, numbers in codes.items()
    } | {"data": [requests["data"]]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "exit_code", "phrase"),
    [pytest.param(*one, id=f"{kind}: {' '.join(one[0])[-60:]}") for kind, *one in REQUESTS],
)
def test_a_bad_request_is_answered(
    place: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    exit_code: int,
    phrase: str,
) -> None:
    monkeypatch.chdir(place["folder"])
    names = {f"{{{name}}}": path for name, path in place.items()}
    ended = run(*(names.get(argument, argument) for argument in arguments))
    assert phrase in ended.output, ended.output
    assert ended.exit_code == exit_code
    assert len(ended.stderr) < LONGEST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "make", "exit_code", "phrase"), [pytest.param(*one, id=name) for name, *one in SITUATIONS]
)
def test_data_as_people_have_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    make: Callable[[Path], object],
    exit_code: int,
    phrase: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    ended = run("probe", *MODEL, "--data", uri, "--probe", "ridge-cls")
    assert phrase in ended.output, ended.output
    assert ended.exit_code == exit_code, ended.output
    shutil.rmtree(tmp_path)
