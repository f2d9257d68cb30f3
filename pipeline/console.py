"""What a person sees: progress, tables and errors. Progress and errors go to stderr, answers to stdout.

On a terminal and in a notebook progress is one moving line; elsewhere (a log, a pipe) it is a plain line every ten seconds. This
module and `cli.py`, `commands/` are the only ones that know rich and click.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .errors import RequestError, shortened
from .event_text import LONG_S, text_of
from .events import (
    CopyFinished,
    CopyProgress,
    CopyStarted,
    Event,
    ExtractionFinished,
    ExtractionProgress,
    ExtractionStarted,
    HashingFinished,
    HashingProgress,
    HashingStarted,
    PrecisionAdvice,
    ProbeFinished,
    ProbeProgress,
    ResultSkipped,
    StudyFailed,
    TokensOutOfRange,
    TrainingStarted,
)
from .outputs import STDOUT, check_output

PLAIN_LINE_EVERY_S = 10.0
NOTEBOOK_EVERY_S = 0.2
LONGEST_LINE = 2000  # characters of a message: a store may have thousands of damaged files
BAR_WIDTH = 16
WIDEST = 1000  # characters of a table that is not shown on a terminal


class Listener:
    """Shows events as they come; use it as a context manager and pass `listener.show` to a stage."""

    def __init__(self, *, quiet: bool = False, events: Path | None = None) -> None:
        """Show progress and messages on stderr.

        Args:
            quiet: show nothing.
            events: file to which every event is appended as a line of JSON; `outputs.STDOUT` is standard output.

        Raises:
            RequestError: the file cannot be written.
        """
        self._events = None if events is None else open_events(events)
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._cell = NotebookLine() if self._console.is_jupyter and not quiet else None
        self._began = self._last_plain = time.monotonic()
        self._last_done = 0
        self._shown_out_of_range: dict[str, int] = {}
        self._shown_skipped: set[ResultSkipped] = set()
        self._advice: PrecisionAdvice | None = None

    def __enter__(self) -> Listener:
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=BAR_WIDTH),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._end()
        if self._events is not None and self._events is not sys.stdout:
            self._events.close()

    def show(self, event: Event) -> None:
        """Print an event as a line, or move the progress bar."""
        if self._events is not None:
            self._events.write(event_line(event))
            self._events.flush()
        match event:
            case ExtractionProgress():
                self._advance(event.num_done, event.num_pending, text_of(event))
                return
            case CopyProgress():
                self._advance(event.bytes_done, event.size_bytes, text_of(event))
                return
            case HashingProgress():
                self._advance(event.num_done, event.num_images, text_of(event))
                return
            case ProbeProgress():
                self._advance(event.step, event.num_steps, text_of(event))
                return
            case PrecisionAdvice():
                self._advice = event  # for the end, and for work that takes time
                return
            case TokensOutOfRange() if not self._has_grown(event):
                return
            case ResultSkipped() if event in self._shown_skipped:
                return  # every seed reads the same file
            case ResultSkipped():
                self._shown_skipped.add(event)
            case CopyFinished() | HashingFinished() | ExtractionFinished() | ProbeFinished() | StudyFailed():
                self._end()
        if text := text_of(event):
            self._print(text)
        if isinstance(event, ExtractionFinished) and event.elapsed_s >= LONG_S and self._advice is not None:
            self._print(text_of(self._advice))
            self._advice = None
        if isinstance(event, CopyStarted):
            self._begin("copy", event.size_bytes)
        elif isinstance(event, HashingStarted):
            self._begin(f"hash {event.split}", event.num_images)
        elif isinstance(event, ExtractionStarted):
            self._begin(f"extract {event.split}", event.num_pending)
        elif isinstance(event, TrainingStarted):
            self._begin(f"probe {event.probes[0]}" if len(event.probes) == 1 else f"{len(event.probes)} probes", 1)

    def _has_grown(self, event: TokensOutOfRange) -> bool:
        """Whether the count of an array is the first one to be shown, or ten times the last one shown."""
        count = event.num_saturated + event.num_nonfinite
        if count < 10 * self._shown_out_of_range.get(event.array, 0):
            return False
        self._shown_out_of_range[event.array] = count
        return True

    def _print(self, line: str) -> None:
        self._console.print(Text(shortened(line, LONGEST_LINE)))

    def _begin(self, description: str, total: int) -> None:
        self._end()  # several models begin together and share one line
        self._began = self._last_plain = time.monotonic()
        self._last_done = 0
        if self._progress is not None:
            self._task = self._progress.add_task(description, total=total, note="")

    def _advance(self, done: int, total: int, note: str) -> None:
        if done < self._last_done:  # another phase
            self._began = time.monotonic()
        self._last_done = done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
            return
        left_s = (time.monotonic() - self._began) * (total - done) / max(done, 1)
        line = f"{note}; {left_s:.0f} s left"
        if self._cell is not None:
            self._cell.show(done / max(total, 1), line)
        elif time.monotonic() - self._last_plain > PLAIN_LINE_EVERY_S:
            self._last_plain = time.monotonic()
            self._print(f"  {line}")

    def _end(self) -> None:
        if self._cell is not None:
            self._cell.clear()
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


class NotebookLine:
    """A line with a bar in the output of a notebook cell, written over until it is cleared; it needs no widgets."""

    def __init__(self) -> None:
        self._display: Any = None
        self._shown = 0.0

    def show(self, fraction: float, text: str) -> None:
        """Show a bar, filled to a fraction in [0, 1], and a text."""
        if self._display is not None and time.monotonic() - self._shown < NOTEBOOK_EVERY_S:
            return
        self._shown = time.monotonic()
        filled = round(BAR_WIDTH * fraction)
        content = {"text/plain": f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {text}"}
        if self._display is None:
            show = import_module("IPython.display").display  # there, in a notebook
            self._display = show(content, raw=True, display_id=True)
        else:
            self._display.update(content, raw=True)

    def clear(self) -> None:
        """Leave an empty line."""
        if self._display is not None:
            self._display.update({"text/plain": ""}, raw=True)
            self._display = None


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, *, num_left: int = 2
) -> None:
    """A table on stdout; the first columns are aligned left, the others right. A log or a pipe gets it in full width.

    On a terminal that is too narrow for it each row is a block of lines, a line a column: names of files stay in one piece.
    """
    console = Console(highlight=False, soft_wrap=True)
    if title:
        console.print(Text(title))
    rows = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < num_left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    width = Measurement.get(console, console.options.update(width=WIDEST), table).maximum
    if console.is_terminal and width > console.width:
        names = max(map(len, columns))
        for row in rows:
            print_lines(
                [row[0], *(f"  {name:<{names}} {cell}" for name, cell in zip(columns[1:], row[1:], strict=True))]
            )
        return
    if console.is_terminal:
        console.print(table, soft_wrap=False)
        return
    console.width = width
    with console.capture() as capture:
        console.print(table, soft_wrap=False)
    print_lines(line.rstrip() for line in capture.get().splitlines())  # or an empty last cell is as wide as the others


def print_lines(lines: Iterable[str]) -> None:
    """Plain lines on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(Text(line))


def open_events(path: Path) -> IO[str]:
    """Open a file of events to append to, or standard output.

    Raises:
        RequestError: it is no regular file, or cannot be written.
    """
    check_output(path, "--events")
    if path == STDOUT:
        return sys.stdout
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise RequestError(
            "layerbank.output_not_writable", where="--events", path=path, reason=error.strerror
        ) from error


def event_line(event: Event) -> str:
    """An event as a line of JSON: `event` is its type, `time` in seconds since the epoch."""
    values = {"event": type(event).__name__, "time": time.time(), **asdict(event)}
    return json.dumps(_finite(values), default=str, allow_nan=False) + "\n"


def print_json(value: Any) -> None:
    """One JSON document on stdout; numbers that are not finite are null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    Console(highlight=False, soft_wrap=True).print(Text(text))


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(where: str, parts: Mapping[str, str]) -> None:
    """An error on stderr: where, then one line a part."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("layerbank: ", "bold red"), where))
    for name, text in parts.items():
        console.print(Text(f"  {name:<9} {text}"))
