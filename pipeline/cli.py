"""The command line: parse, call, show. Everything it does can be done from Python with the modules it calls.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong. Nothing heavy is imported before a command runs, so that `--help`
answers at once.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from . import __version__
from .commands.cache import cache
from .commands.doctor import doctor
from .commands.extract import extract, plan
from .commands.models import datasets, models
from .commands.predict import predict
from .commands.probe import probe
from .commands.probes import attention, probes
from .commands.report import report
from .commands.runs import runs
from .commands.study import study
from .errors import LayerbankError

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),  # - and _ are the same in option names
    "max_content_width": 110,
}


class _Layerbank(click.Group):
    """Shows our errors in four lines and sets the exit code; any other exception is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from .console import print_error

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error(
                "interrupted", {"do": "Run the same command again: it continues after the last committed rows."}
            )
            ctx.exit(130)
        except LayerbankError as error:
            print_error(error.where, {"expected": error.expected, "got": error.got, "do": error.todo})
            ctx.exit(_exit_code(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.errno is None:
                raise
            todo = "Check the path, its permissions and the free space. Everything committed is kept."
            place = "a file" if error.filename is None else str(error.filename)  # a full disk names none
            print_error(place, {"got": error.strerror or str(error), "do": todo})
            ctx.exit(1)


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


for command in (extract, plan, probe, predict, study, report, runs, attention, cache, models, datasets, probes, doctor):
    main.add_command(command)


if __name__ == "__main__":
    main()
