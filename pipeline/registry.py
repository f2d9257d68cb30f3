"""Named parts that can be extended: data sources, model families, heads, figures of a report.

The parts that come with layerbank are listed beside the code that uses the registry, as `module:object`, and are imported when they
are first needed. A package of the user adds one by an entry point of the registry's group:

    [project.entry-points."layerbank.sources"]
    zip = "my_package.zip_source:ZIP"

A plug-in that cannot be imported affects nothing else: `broken` names it, and so does the error of a request for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import TypeVar

from .errors import RequestError, advice

Part = TypeVar("Part")


class Registry(Mapping[str, Part]):
    """Parts by name, built-in ones first, in the order of their registration; a broken plug-in is not among them.

    Args:
        group: group of the entry points, such as `layerbank.sources`.
        noun: what a part is called in messages, such as `data source`.
        kind: the class of every part.
        builtin: name -> `module:object`.

    Attributes:
        group, noun, builtin: as given.
    """

    def __init__(self, group: str, noun: str, kind: type[Part], builtin: Mapping[str, str]) -> None:
        self.group, self.noun, self._kind, self.builtin = group, noun, kind, builtin
        self._loaded: dict[str, Part] = {}

    def __getitem__(self, name: str) -> Part:
        """The part of this name.

        Raises:
            KeyError: there is none, or it is a plug-in that cannot be loaded; `require` says which.
        """
        if name not in self._loaded:
            if name in self.builtin:
                self._loaded[name] = resolve_name(self.builtin[name])
            else:
                self._loaded[name] = self._plugins[0][name]
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.builtin
        yield from self._plugins[0]

    def __len__(self) -> int:
        return len(self.builtin) + len(self._plugins[0])

    @property
    def broken(self) -> Mapping[str, str]:
        """Plug-ins that cannot be used: name -> the package that registers it, and why."""
        return self._plugins[1]

    def require(self, name: str) -> Part:
        """The part of this name.

        Raises:
            RequestError: there is none, or it is a plug-in that cannot be loaded.
        """
        if name in self:
            return self[name]
        if name in self.broken:
            raise RequestError("layerbank.broken_plugin", noun=self.noun, name=name, reason=self.broken[name])
        raise RequestError(
            "layerbank.unknown_part", noun=self.noun, name=name, names=", ".join(self), advice=advice(name, self)
        )

    @cached_property
    def _plugins(self) -> tuple[dict[str, Part], dict[str, str]]:
        """Those that work, and those that do not with the reason."""
        working: dict[str, Part] = {}
        broken: dict[str, str] = {}
        for point in entry_points(group=self.group):
            try:
                working[point.name] = self._load(point, working)
            except (Exception, SystemExit) as error:  # whatever a plug-in does on import
                package = point.dist.name if point.dist else "an unknown package"
                reason = f"{package} ({point.value}): {type(error).__name__}: {error}"
                broken[point.name] = "; ".join(filter(None, (broken.get(point.name), reason)))
        return working, broken

    def _load(self, point: EntryPoint, others: Mapping[str, Part]) -> Part:
        if point.name in self.builtin or point.name in others:
            raise ValueError(f"the name {point.name} is taken")
        part = point.load()
        if not isinstance(part, self._kind):
            raise TypeError(f"a {self._kind.__name__} is needed, this is a {type(part).__name__}")
        return part
