"""`wds:`: the index of tars equals Python's own, samples are complete, damage is found and named."""

import gzip
import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_errors import names_of, refuses_data
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises
from PIL import Image
from tars import encoded_image, with_labels, write_tar
from xxhash import xxh3_64_intdigest

from layerbank.cache import index
from layerbank.cache.checked_arrays import read_arrays
from layerbank.data.sources import BadImage, open_source
from layerbank.data.tars import samples as tar_samples
from layerbank.data.tars.headers import DamagedTar, walk_tar

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "wds_cifar10_subset"


def samples(first: int, count: int, num_classes: int = 3) -> list[tuple[str, bytes]]:
    members = []
    for number in range(first, first + count):
        members.append((f"s{number:04d}.png", encoded_image(number)))
        members.append((f"s{number:04d}.cls", str(number % num_classes).encode()))
    return members


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two training shards of 4 and 3 samples, one test shard of 2, three classes."""
    root = tmp_path / "trees"
    write_tar(root / "train" / "0.tar", samples(0, 4))
    write_tar(root / "train" / "1.tar", samples(4, 3))
    write_tar(root / "test" / "0.tar", samples(7, 2))
    (root / "train" / "nshards.txt").write_text("2\n")
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("oak\nÖlbaum\nfir\n", encoding="utf-8")
    return root


# --- the layout of the CLIP benchmark ---


def test_samples_come_in_the_order_of_shards_and_members(dataset):
    source = open_source(f"wds:{dataset}", "train")
    assert source.ids == [f"train/0.tar/s000{n}" for n in range(4)] + [f"train/1.tar/s000{n}" for n in range(4, 7)]
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert source.class_names == ["oak", "Ölbaum", "fir"]
    assert (source.name, source.split) == ("trees", "train")


def test_each_image_is_read_at_its_place(dataset):
    source = open_source(f"wds:{dataset}", "train")
    for row in (6, 0, 5, 1, 4):  # back and forth between shards
        image, content_hash = source.load(row)
        assert content_hash == xxh3_64_intdigest(encoded_image(row))
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(encoded_image(row)))))


def test_all_image_formats_and_the_first_of_several(tmp_path):
    formats = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}
    members = [(f"dir/{key}.{key}", encoded_image(1, form)) for key, form in formats.items()]
    members += [(f"dir/{key}.cls", b"0") for key in formats]
    members += [("two.png", encoded_image(2)), ("two.jpg", encoded_image(3, "jpeg")), ("two.cls", b"1\n")]
    members += [
        ("UPPER.PNG", encoded_image(4)),
        ("UPPER.CLS", b"2"),
        ("UPPER.json", b"{}"),
        (".hidden.png", b""),
    ]
    write_tar(tmp_path / "train" / "a.tar", members)
    source = open_source(f"wds:{tmp_path}", "train")
    keys = ["dir/jpg", "dir/jpeg", "dir/png", "dir/webp", "two", "UPPER"]
    assert source.ids == [f"train/a.tar/{key}" for key in keys]
    assert source.load(4)[1] == xxh3_64_intdigest(encoded_image(3, "jpeg"))


def test_only_as_many_shards_as_nshards_says(dataset):
    (dataset / "train" / "nshards.txt").write_text("1")
    assert len(open_source(f"wds:{dataset}", "train")) == 4


def test_without_nshards_all_tars_in_numeric_order(tmp_path):
    for number in (10, 9, 1):
        write_tar(tmp_path / "train" / f"{number}.tar", samples(number, 1))
    assert [id.split("/")[1] for id in open_source(f"wds:{tmp_path}", "train").ids] == [
        "1.tar",
        "9.tar",
        "10.tar",
    ]


def test_a_source_survives_pickling_and_a_moved_copy_has_the_same_digest(dataset, tmp_path):
    source = open_source(f"wds:{dataset}", "train")
    source.load(0)
    assert pickle.loads(pickle.dumps(source)).load(6)[1] == source.load(6)[1]
    moved = shutil.copytree(dataset, tmp_path / "moved")
    assert names_of(open_source(f"wds:{moved}", "train")) == names_of(source)


# --- patterns ---


def test_a_pattern_and_a_folder_give_the_same_samples(dataset):
    by_folder = open_source(f"wds:{dataset}", "train")
    by_pattern = open_source(f"wds:{dataset}/{{split}}/{{0..1}}.tar", "train")
    assert names_of(by_pattern) == names_of(by_folder)
    assert by_pattern.name == "trees"


def test_a_pattern_with_the_split_in_the_file_name(tmp_path, monkeypatch):
    for number in (8, 9, 10):
        write_tar(tmp_path / f"trees-train-{number:03d}.tar", samples(number, 1))
    monkeypatch.chdir(tmp_path)
    source = open_source("wds:trees-{split}-{008..010}.tar", "train")
    assert source.ids == [f"trees-train-{n:03d}.tar/s{n:04d}" for n in (8, 9, 10)]
    assert source.name == "trees"
    assert source.load(2)[1] == xxh3_64_intdigest(encoded_image(10))


def test_a_pattern_without_a_split_is_refused(dataset):
    uri = f"wds:{dataset}/train/{{0..1}}.tar"
    refuses_data("data.pattern_without_split", uri, uri=uri)


@pytest.mark.parametrize("braces", ["{1..0}", "{}", "{a..c}", "{x}"])
def test_braces_that_mean_nothing_are_refused(dataset, braces):
    pattern = f"{dataset}/train/{braces}.tar"
    refuses_data("data.bad_braces", f"wds:{dataset}/{{split}}/{braces}.tar", pattern=pattern, part=braces)


def test_a_shard_named_twice_repeats_its_ids(dataset):
    values = {"data": "trees, split train", "id": "train/0.tar/s0000", "count": 4}
    refuses_data("data.repeated_ids", f"wds:{dataset}/{{split}}/{{0,0}}.tar", **values)


# --- what is not there ---


@pytest.mark.parametrize(("form", "shards"), [("", "*.tar"), ("/{split}/{0..1}.tar", "0.tar")])
def test_no_such_split_lists_those_there_are(dataset, form, shards):
    place = f"{dataset}/val/{shards}"
    refuses_data("data.no_such_split", f"wds:{dataset}{form}", "val", place=place, splits="test, train")


def test_no_split_at_all(tmp_path):
    refuses_data("data.no_splits", f"wds:{tmp_path}", data=f"wds:{tmp_path}", place=f"{tmp_path}/train/*.tar")


def test_a_missing_shard_is_named(dataset):
    (dataset / "train" / "1.tar").unlink()
    refuses_data("data.missing_shards", f"wds:{dataset}", folder=dataset / "train", count=2, missing=1, names="1.tar")
    names = "1.tar, 2.tar, 3.tar, 4.tar, 5.tar, ..."
    refuses_data("data.missing_shards", f"wds:{dataset}/{{split}}/{{0..8}}.tar", count=9, missing=8, names=names)


def test_an_nshards_file_that_holds_no_number(dataset):
    (dataset / "train" / "nshards.txt").write_text("two")
    refuses_data("data.bad_shard_count", f"wds:{dataset}", file=dataset / "train" / "nshards.txt", content="'two'")


def test_a_tar_without_samples(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", [])
    refuses_data("data.no_samples", f"wds:{tmp_path}", data=f"wds:{tmp_path}", split="train", count=1)


# --- bad samples ---


@pytest.mark.parametrize(
    ("members", "key", "values"),
    [
        ([("a.png", b"x"), ("a.json", b"{}")], "data.sample_without_class", {"found": "json, png"}),
        (
            [("a.cls", b"1"), ("a.txt", b"oak")],
            "data.sample_without_image",
            {"extensions": "jpg, jpeg, png, webp, bmp, tif, tiff, ppm, pgm", "found": "cls, txt"},
        ),
        ([("a.png", b"x"), ("a.cls", b"")], "data.bad_class", {"content": "b''", "member": "cls"}),
        ([("a.png", b"x"), ("a.cls", b"\xff")], "data.bad_class", {"content": "b'\\xff'"}),
        (
            [("a.png", b"x"), ("a.cls", b"1"), ("a.png", b"x")],
            "data.repeated_member",
            {"extension": "png", "offset": 4608},
        ),
    ],
)
def test_an_incomplete_sample_is_named(dataset, members, key, values):
    shard = write_tar(dataset / "train" / "1.tar", [*samples(0, 1), *members])
    refuses_data(key, f"wds:{dataset}", **({"key": "a", "shard": shard} | values))


def test_a_class_beyond_the_names_is_named(dataset):
    (dataset / "classnames.txt").write_text("oak\nash\n")
    place = f"{dataset}, sample train/0.tar/s0002"
    refuses_data("data.class_without_name", f"wds:{dataset}", place=place, count=2, label=2)


def test_a_corrupt_image_is_named_with_its_place_in_the_tar(dataset):
    write_tar(dataset / "train" / "1.tar", [("a.jpg", b"not a jpeg"), ("a.cls", b"1")])
    source = open_source(f"wds:{dataset}", "train")
    with raises(
        "data.bad_image",
        BadImage,
        id="train/1.tar/a",
        file=f"{dataset}/train/1.tar at byte 512",
        reason="bytes in none of the formats JPEG, PNG, PPM, BMP, TIFF, WEBP",
    ):
        source.load(4)


def test_a_tar_cut_after_opening_is_a_bad_image(dataset):
    source = open_source(f"wds:{dataset}", "train")
    with (dataset / "train" / "0.tar").open("r+b") as file:
        file.truncate(600)
    with raises("data.bad_image", reason=f"the tar ends after 88 of {len(encoded_image(0))} bytes"):
        source.load(0)


# --- the kept index ---


@pytest.fixture
def walked(monkeypatch) -> list[str]:
    """The tars that are walked from here on; a tar counts as settled at once."""
    tars: list[str] = []
    monkeypatch.setattr(index, "SETTLED_NS", 0)
    monkeypatch.setattr(
        tar_samples, "walk_tar", lambda file: tars.append("/".join(Path(file.name).parts[-2:])) or walk_tar(file)
    )
    return tars


def describe(source):
    places = [source.file_of(row) for row in range(len(source))]
    return names_of(source), places, source.sizes.tolist()


def kept_index() -> Path:
    (folder,) = index.user_folders()
    (file,) = folder.glob("*.tars")
    return file


@pytest.mark.parametrize("form", ["", "/{split}/{0..1}.tar"])
def test_tars_are_walked_by_the_first_process_alone(dataset, walked, form):
    first = open_source(f"wds:{dataset}{form}", "train")
    assert walked == ["train/0.tar", "train/1.tar"]
    again = open_source(f"wds:{dataset}{form}", "train")
    assert len(walked) == 2
    assert describe(again) == describe(first)
    assert [again.read(row) for row in range(7)] == [encoded_image(row) for row in range(7)]


def test_a_tar_that_changed_or_is_new_is_walked_and_no_other(dataset, walked):
    (dataset / "train" / "nshards.txt").unlink()
    open_source(f"wds:{dataset}", "train")
    write_tar(dataset / "train" / "0.tar", samples(20, 2))
    write_tar(dataset / "train" / "2.tar", samples(30, 1))
    walked.clear()
    changed = open_source(f"wds:{dataset}", "train")
    assert walked == ["train/0.tar", "train/2.tar"]
    assert [changed.read(row) for row in range(6)] == [encoded_image(n) for n in (20, 21, 4, 5, 6, 30)]
    (dataset / "train" / "1.tar").unlink()
    walked.clear()
    assert [id.split("/")[1] for id in open_source(f"wds:{dataset}", "train").ids] == ["0.tar", "0.tar", "2.tar"]
    assert walked == []


def test_a_kept_index_that_is_damaged_is_made_again(dataset, walked):
    first = describe(open_source(f"wds:{dataset}", "train"))
    content = kept_index().read_bytes()
    for damaged in (
        b"",
        content[:-1],
        content[:40],
        *(content[:n] + b"~" + content[n + 1 :] for n in range(0, 200, 7)),
    ):
        kept_index().write_bytes(damaged)
        walked.clear()
        assert describe(open_source(f"wds:{dataset}", "train")) == first
        assert len(walked) == 2
        assert kept_index().read_bytes() != damaged


@pytest.mark.parametrize("text", ["", "\xff", "[", "3", "[3, 3]", "[{}]", '[{"txt": "1"}, {}]', "[" * 100_000])
def test_a_kept_index_of_other_values_is_made_again_though_its_checksum_is_right(dataset, walked, text, monkeypatch):
    first = describe(open_source(f"wds:{dataset}", "train"))

    def read_other(*arguments):
        return read_arrays(*arguments) | {"left_out": np.frombuffer(text.encode("latin-1"), np.uint8)}

    monkeypatch.setattr(tar_samples, "read_arrays", read_other)
    walked.clear()
    assert describe(open_source(f"wds:{dataset}", "train")) == first
    assert len(walked) == 2


def test_a_tar_that_was_just_written_is_walked_again(dataset, walked, monkeypatch):
    monkeypatch.setattr(index, "SETTLED_NS", 10**12)
    for _ in range(2):
        open_source(f"wds:{dataset}", "test")
    assert walked == ["test/0.tar"] * 2


def test_a_tar_that_changes_while_it_is_walked_is_not_kept(dataset, walked, monkeypatch):
    def walk_and_touch(file):
        yield from walk_tar(file)
        Path(file.name).touch()

    with monkeypatch.context() as patch:
        patch.setattr(tar_samples, "walk_tar", walk_and_touch)
        open_source(f"wds:{dataset}", "test")
    open_source(f"wds:{dataset}", "test")
    assert walked == ["test/0.tar"]


def test_where_no_index_can_be_kept_tars_are_walked(dataset, walked, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        walked.clear()
        for _ in range(2):
            assert len(open_source(f"wds:{dataset}", "test")) == 2
        assert walked == ["test/0.tar"] * 2


# --- damaged tars ---


def test_a_truncated_tar_is_reported_wherever_it_was_cut(dataset):
    shard = dataset / "train" / "1.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        ends = [member.offset_data + member.size for member in tar.getmembers() if member.name.endswith(".cls")]
    end_of_data = -(-ends[-1] // 512) * 512
    for cut in range(0, end_of_data, 128):
        shard.write_bytes(content[:cut])
        refuses_data("data.damaged_tar", f"wds:{dataset}", shard=shard, count=sum(end <= cut for end in ends))
    shard.write_bytes(content[: end_of_data + 512])  # a lone zero block ends a tar, as tarfile reads it
    assert len(open_source(f"wds:{dataset}", "train")) == 7


def test_the_message_for_a_truncated_tar(dataset):
    shard = dataset / "train" / "1.tar"
    shard.write_bytes(shard.read_bytes()[:2600])
    problem = f"the file ends {2560 + len(encoded_image(5)) - 2600} bytes before the end of s0005.png"
    refuses_data("data.damaged_tar", f"wds:{dataset}", offset=2560, problem=problem, count=1)


def test_a_tar_cut_between_two_samples_is_not_taken_for_a_whole_one(dataset):
    shard = dataset / "train" / "1.tar"
    shard.write_bytes(shard.read_bytes()[:2048])
    problem = "the file ends before the tar's end mark"
    refuses_data("data.damaged_tar", f"wds:{dataset}", problem=problem, count=1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK" + b"x" * 2000, "the file is not a tar"),
        (b"", "the file ends before the tar's end mark"),
    ],
)
def test_a_file_that_is_no_tar(dataset, content, problem):
    shard = dataset / "train" / "1.tar"
    shard.write_bytes(content)
    refuses_data("data.damaged_tar", f"wds:{dataset}", shard=shard, offset=0, problem=problem, count=0)


@pytest.mark.parametrize("form", ["", "/{split}/{0..1}.tar"])
def test_a_compressed_tar_is_refused_with_the_reason(dataset, form):
    shard = dataset / "train" / "1.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    refuses_data("data.compressed_tar", f"wds:{dataset}{form}", shard=shard)


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".tar.zst"])
def test_a_folder_of_compressed_tars_is_refused_with_the_reason(tmp_path, ending):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"0{ending}").write_bytes(b"\x1f\x8b")
    refuses_data("data.compressed_tar", f"wds:{tmp_path}", shard=tmp_path / "train" / f"0{ending}")


def test_what_is_beside_the_samples_is_counted_by_every_process(dataset, walked):
    members = [("s.png", encoded_image(1)), ("s.jpg", encoded_image(1)), ("s.cls", b"0"), ("s.json", b"{}")]
    first, second = (dataset / "train" / f"{number}.tar" for number in range(2))
    write_tar(first, [*members, ("s.seg.png", b""), ("s", b""), (".hidden", b"")])
    shutil.copy(write_tar(dataset / "x.tar", samples(20, 1)), second)
    with second.open("ab") as file:
        file.write(first.read_bytes())
    (dataset / "train" / "2.tar").touch()  # nshards.txt says 2
    (dataset / "train" / "3.tar.gz").touch()
    found = {".png": 1, ".json": 1, ".seg.png": 1, "no extension": 1, tar_samples.AFTER_THE_END: 1}
    found |= {".tar": 1, ".tar.gz": 1}
    for _ in range(2):
        assert open_source(f"wds:{dataset}", "train").left_out == found
    assert walked == ["train/0.tar", "train/1.tar"]
    assert open_source(f"wds:{dataset}", "test").left_out == {}


def test_a_flipped_byte_in_a_header_is_found(dataset):
    shard = dataset / "train" / "1.tar"
    content = bytearray(shard.read_bytes())
    content[1024 + 2] ^= 1
    shard.write_bytes(content)
    refuses_data("data.damaged_tar", f"wds:{dataset}", offset=1024, problem="a header fails its checksum")


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    info = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    info[124:136] = size
    info[156:157] = kind
    info[148:156] = b" " * 8
    info[148:156] = f"{sum(info):06o}\0 ".encode()
    return bytes(info)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (header("a", b"not a number"), "the size of a is no number"),
        (header("a", b"00000000000\0", b"S"), "a is stored sparse, which is not supported"),
        (header("a", b"00000000005\0", b"x") + b"0 a=b" + bytes(507), "an extended header is damaged"),
        (header("a", b"00000000005\0", b"x") + b"9 a=b" + bytes(507), "an extended header is damaged"),
        (
            header("a", b"00000000012\0", b"x") + b"10 size=x\n" + bytes(502) + header("a", b"00000000005\0"),
            "the size of a is no number",
        ),
    ],
)
def test_headers_that_no_reader_should_follow(tmp_path, content, problem):
    path = tmp_path / "a.tar"
    path.write_bytes(content + bytes(1024))
    with path.open("rb") as file, pytest.raises(DamagedTar) as caught:
        list(walk_tar(file))
    assert caught.value.problem == problem


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/"), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(st.tuples(st.lists(names, min_size=1, max_size=3), st.binary(max_size=1500)), max_size=5),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_the_walk_finds_what_tarfile_finds(tmp_path_factory, members, format):
    path = tmp_path_factory.getbasetemp() / "walk.tar"
    write_tar(path, [("/".join(parts), content) for parts, content in members], format)
    with path.open("rb") as file, tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar.getmembers()]
        assert [(member.name, member.offset, member.size) for member in walk_tar(file)] == expected


def test_the_walk_reads_folders_links_long_ustar_names_and_base_256_sizes(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind in (
            ("dir", tarfile.DIRTYPE),
            ("link", tarfile.SYMTYPE),
            ("d" * 90 + "/" + "f" * 90, b"0"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info)
    with path.open("rb") as file:
        assert [member.name for member in walk_tar(file)] == ["d" * 90 + "/" + "f" * 90]
    path.write_bytes(header("big", b"\x80" + bytes(10) + b"\x05") + b"hello" + bytes(507 + 1024))
    with path.open("rb") as file:
        assert [(member.name, member.size) for member in walk_tar(file)] == [("big", 5)]


# --- real photographs ---


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-10 subset lies beside the checkout only where it was shared")
class TestCifarSubset:
    def test_it_has_5000_and_2000_photographs_of_10_classes_each_equally_often(self):
        train, test = open_source(f"wds:{CIFAR}", "train"), open_source(f"wds:{CIFAR}", "test")
        assert (len(train), len(test), train.num_classes) == (5000, 2000, 10)
        assert train.class_names[0] == "airplane"
        assert np.bincount(train.labels).tolist() == [500] * 10
        assert np.bincount(test.labels).tolist() == [200] * 10

    def test_every_hundredth_image_decodes_and_its_bytes_are_those_tarfile_extracts(self):
        source = open_source(f"wds:{CIFAR}", "test")
        with tarfile.open(CIFAR / "test" / "0.tar") as tar:
            for row in range(0, 1000, 100):
                image, content_hash = source.load(row)
                member = tar.extractfile(source.ids[row].removeprefix("test/0.tar/") + ".jpg")
                assert member is not None
                assert content_hash == xxh3_64_intdigest(member.read())
                assert (image.size, image.mode) == ((32, 32), "RGB")


# --- labels in other members ---


def test_labels_may_be_texts(tmp_path):
    root = with_labels(tmp_path, cls=[b"oak", "Ölbaum\n".encode(), b"oak"])
    for _ in range(2):  # walked, then known
        source = open_source(f"wds:{root}", "train")
        assert (source.class_names, source.labels.tolist()) == (["oak", "Ölbaum"], [0, 1, 0])
    (root / "classnames.txt").write_text("Ölbaum\nfir\noak\n", encoding="utf-8")
    source = open_source(f"wds:{root}", "train")
    assert (source.class_names, source.labels.tolist()) == (["Ölbaum", "fir", "oak"], [2, 0, 2])


def test_labels_may_be_in_another_member(tmp_path):
    json = [b'{"kind": "oak", "age": 3, "one_hot": [0, 1]}', b'{"kind": "fir", "age": 7}', b'{"kind": "oak", "age": 3}']
    root = with_labels(tmp_path, txt=[b"tall", b"small", b"tall"], json=json)
    for label, class_names, labels in (
        ("txt", ["small", "tall"], [1, 0, 1]),
        ("json:kind", ["fir", "oak"], [1, 0, 1]),
        ("json:age", ["3", "7"], [0, 1, 0]),
    ):
        for _ in range(2):
            source = open_source(f"wds:{root}?label={label}", "train")
            assert (source.class_names, source.labels.tolist()) == (class_names, labels)
    refuses_data("data.bad_class", f"wds:{root}?label=json:one_hot", key="1", member="json:one_hot")
    refuses_data("data.sample_without_class", f"wds:{root}", key="0", member="cls", found="json, png, txt")
    refuses_data("data.unknown_option", f"wds:{root}?labels=txt", option="labels", advice="Did you mean 'label'?")


def test_classnames_are_those_of_cls_alone(tmp_path):
    root = with_labels(tmp_path, cls=[b"1", b"0", b"1"], txt=[b"0", b"2", b"1"])
    (root / "classnames.txt").write_text("oak\nfir\n", encoding="utf-8")
    assert open_source(f"wds:{root}", "train").class_names == ["oak", "fir"]
    assert open_source(f"wds:{root}?label=cls", "train").class_names == ["oak", "fir"]
    assert open_source(f"wds:{root}?label=txt", "train").class_names == ["0", "1", "2"]


def test_a_text_that_is_longer_than_a_label_is_no_class(tmp_path):
    root = with_labels(tmp_path, txt=[b"a" * 1024, b"a" * 1025, b"b"])
    refuses_data("data.bad_class", f"wds:{root}?label=txt", key="1", member="txt")


def test_one_hot_lists_are_classes(tmp_path):
    json = [b'{"y": [0, 0, 1]}', b'{"y": [1, 0, 0]}', b'{"y": [0.0, 0.0, 1.0]}']
    source = open_source(f"wds:{with_labels(tmp_path, json=json)}?label=json:y", "train")
    assert (source.class_names, source.labels.tolist()) == (["0", "2"], [1, 0, 1])


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b'{"y": null}', b'{"y": [1, 1]}', b'{"y": NaN}', b'{"y": {}}', b"[" * 9999]
)
def test_values_that_are_no_labels_are_named(tmp_path, content):
    root = with_labels(tmp_path, json=[b'{"y": 1}', content, b'{"y": 2}'])
    refuses_data("data.bad_class", f"wds:{root}?label=json:y", key="1", member="json:y")


@pytest.mark.parametrize(
    ("labels", "key", "values"),
    [
        ([b"1", b"-1", b"0"], "data.label_below_zero", {"label": -1}),
        ([b"1", b"oak", b"0"], "data.mixed_labels", {"found": "2 whole numbers, 1 texts, such as train/0.tar/1"}),
        ([b"fir", b"oak", b"0"], "data.mixed_labels", {"found": "1 whole numbers, such as train/0.tar/2, 2 texts"}),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, key, values):
    refuses_data(key, f"wds:{with_labels(tmp_path, cls=labels)}", **values)
