"""Run a command of layerbank in this process, as a user would type it."""

from __future__ import annotations

from click.testing import CliRunner, Result
from photos import TINY_MODEL

from pipeline.cli import main

MODEL = ("--model", TINY_MODEL, "--weights", "random", "--image-size", "32", "--workers", "0", "--batch-size", "16")


def run(*arguments: object) -> Result:
    """`layerbank ARGUMENTS...`; anything that is no refusal of ours is raised."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
