"""The command line: parse, call, show. Everything it does can be done from Python with the modules it calls.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong. Nothing heavy is imported before a command runs, so that `--help`
answers at once.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import click

from . import __version__
from .commands.cache import cache
from .commands.doctor import doctor
from .commands.export import export
from .commands.extract import extract, plan
from .commands.models import datasets, models
from .commands.options import CommandGroup
from .commands.predict import predict
from .commands.probe import probe
from .commands.probes import attention, probes
from .commands.report import report
from .commands.runs import runs
from .commands.study import study
from .errors import LONGEST_VALUE, LayerbankError, RequestError, shortened
from .system_errors import system_error

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),  # - and _ are the same in option names
    "max_content_width": 110,
}


class _Layerbank(CommandGroup):
    """Shows our errors in four lines and sets the exit code; any other exception is a bug and keeps its traceback."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _errors_shown(ctx):
            for before, argument in pairwise(("", *args)):  # as a path, it would be the current folder
                if not argument.strip() or _EMPTY_OPTION.fullmatch(argument):
                    option = before if before.startswith("-") else argument.rstrip("=") or "arguments"
                    raise RequestError("layerbank.empty_value", where=option)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_shown(ctx):
            return super().invoke(ctx)


_EMPTY_OPTION = re.compile(r"--[\w-]+=\s*")


@contextmanager
def _errors_shown(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        from .console import print_error

        print_error("interrupted", {"do": "Run the same command again: it continues after the last committed rows."})
        ctx.exit(130)
    except click.UsageError as error:
        message = error.format_message()
        if len(message) <= LONGEST_VALUE:
            raise
        raise click.UsageError(shortened(message), error.ctx) from None
    except (click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except Exception as error:
        found = error if isinstance(error, LayerbankError) else system_error(error)
        if found is None:
            raise
        from .console import print_error

        print_error(found.where, {"expected": found.expected, "got": found.got, "do": found.todo})
        ctx.exit(_exit_code(found))


def _exit_code(error: LayerbankError) -> int:
    """1 when the work failed, 2 when the request was wrong."""
    return 1 if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, FileNotFoundError) else 2


@click.group(cls=_Layerbank, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="layerbank")
def main() -> None:
    """Run a vision foundation model once, keep every layer's tokens, train attentive probes by the hundred.

    \b
    layerbank probe --model demo/vit-s-focus --data demo:digits --protocol quick
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no text in its encoding
        sys.stdout.reconfigure(errors="backslashreplace")


for command in (
    extract,
    plan,
    probe,
    predict,
    export,
    study,
    report,
    runs,
    attention,
    cache,
    models,
    datasets,
    probes,
    doctor,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
