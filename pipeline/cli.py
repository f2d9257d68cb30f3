"""The command line: parse, call, show. Everything it does can be done from Python with the modules it calls.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong. Nothing heavy is imported before a command runs, so that `--help`
answers at once.
"""

from __future__ import annotations

from typing import Any

import click

from .commands.cache import cache
from .commands.doctor import doctor
from .commands.extract import extract, plan
from .commands.models import datasets, models
from .commands.predict import predict
from .commands.probe import probe
from .commands.probes import attention, probes
from .commands.report import report
from .commands.study import study

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),  # - and _ are the same in option names
    "max_content_width": 110,
}


class _Layerbank(click.Group):
    """Turns our errors into four lines and an exit code; everything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            from .console import print_error

            todo = "What was committed is kept: run the same command again to go on."
            print_error("interrupted", {"do": todo})
            ctx.exit(130)
        except Exception as error:  # judged below: ours and the system's are shown, any other is raised again
            from .console import print_error

            shown: Any = error
            if all(hasattr(error, part) for part in ("where", "expected", "got", "todo")):
                print_error(shown.where, {"expected": shown.expected, "got": shown.got, "do": shown.todo})
                ctx.exit(_exit_code(error))
            if not isinstance(error, OSError) or isinstance(error, BrokenPipeError) or error.filename is None:
                raise
            todo = "Check the path, its permissions and the space left; what was committed is kept."
            print_error(str(error.filename), {"got": error.strerror or str(error), "do": todo})
            ctx.exit(1)


def _exit_code(error: Exception) -> int:
    """1 when the work failed, 2 when the request was wrong."""
    return 1 if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, FileNotFoundError) else 2


@click.group(cls=_Layerbank, context_settings=CONTEXT)
@click.version_option(package_name="layerbank", prog_name="layerbank")
def main() -> None:
    """Run a vision foundation model once, keep every layer's tokens, train attentive probes by the hundred.

    \b
    layerbank probe --model demo/vit-s-focus --data demo:digits --protocol quick
    """


for command in (extract, plan, probe, predict, study, report, attention, cache, models, datasets, probes, doctor):
    main.add_command(command)


if __name__ == "__main__":
    main()
