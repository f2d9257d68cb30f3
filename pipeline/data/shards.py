"""Which tar files make a split: `DIR/<split>/0.tar` ... as the CLIP benchmark lays them out, or a pattern.

Knows names of files, not what is inside them.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import RequestError
from .patterns import data_name, expand_braces, fill_split, fixed_folder, no_such_split, require_split, splits_of


class ShardFolder:
    """DIR/<split>/*.tar: 0.tar, 1.tar ... as many as `nshards.txt` says; without that file, all there are."""

    def __init__(self, address: str) -> None:
        self.root = Path(address).expanduser()
        self.name = self.root.resolve().name
        if not self.root.is_dir():
            raise RequestError(
                where=f"wds:{address}",
                expected="a folder",
                got="a file" if self.root.exists() else "nothing there",
                todo="Give the folder above the splits, or a pattern such as wds:DIR/{split}/{000..010}.tar.",
            )

    def splits(self) -> list[str]:
        return sorted({path.parent.name for path in self.root.glob("*/*.tar")})

    def of(self, split: str) -> list[Path]:
        """The shards of a split, in order. Raises RequestError for no such split or a missing shard."""
        folder = self.root / split
        count_file = folder / "nshards.txt"
        if count_file.is_file():
            count = count_file.read_text().strip()
            if not count.isdigit():
                raise RequestError(
                    where=str(count_file),
                    expected="the number of shards",
                    got=repr(count),
                    todo="Correct the file.",
                )
            return _present([folder / f"{number}.tar" for number in range(int(count))], f"nshards.txt says {count}")
        shards = sorted(folder.glob("*.tar"), key=lambda path: (len(path.name), path.name))  # 10.tar after 9.tar
        if not shards:
            raise no_such_split(f"wds:{self.root}, split {split}", f"tars in {folder}", self.splits())
        return shards


class ShardPattern:
    """A path with `{split}` and braces, such as `DIR/{split}/{000..010}.tar`."""

    def __init__(self, address: str) -> None:
        require_split(f"wds:{address}")
        self.pattern = os.path.expanduser(address)
        self.root = fixed_folder(self.pattern)
        self.name = data_name(self.pattern)

    def splits(self) -> list[str]:
        return splits_of(self.pattern)

    def of(self, split: str) -> list[Path]:
        """The shards of a split, in order. Raises RequestError for no such split or a missing shard."""
        shards = [Path(path) for path in expand_braces(fill_split(self.pattern, split))]
        if not any(shard.exists() for shard in shards):
            raise no_such_split(f"wds:{self.pattern}, split {split}", str(shards[0]), self.splits())
        return _present(shards, "so many names has the pattern")


def shards_at(address: str) -> ShardFolder | ShardPattern:
    return ShardPattern(address) if "{" in address else ShardFolder(address)


def _present(shards: list[Path], why: str) -> list[Path]:
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise RequestError(
            where=str(shards[0].parent),
            expected=f"{len(shards)} shards ({why})",
            got=f"{len(missing)} missing: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}",
            todo="Copy or download the missing shards.",
        )
    return shards
