"""What the commands say to people: texts as they are, on lines of any length, so that they can be copied."""

import sys
from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

stderr = Console(stderr=True)

PIPE_WIDTH = 1000  # characters; a table that no terminal shows is not cut to one's width


def say(message: str) -> None:
    """One line on stderr. What looks like markup or an emoji's name is text: a prompt or path may have it."""
    stderr.print(Text(message), soft_wrap=True)


def warn(message: str) -> None:
    """A line that starts with a yellow "warning"."""
    stderr.print(Text.assemble(("warning", "yellow"), f": {message}"), soft_wrap=True)


def blame(message: str) -> None:
    """A line that starts with a red "error"."""
    stderr.print(Text.assemble(("error", "red"), f": {message}"), soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Blames, and ends the command with exit code 1."""
    blame(message)
    raise typer.Exit(1)


def print_table(table: Table) -> None:
    """On stdout."""
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, emoji=False).print(table)
