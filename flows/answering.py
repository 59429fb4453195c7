"""How every command ends: an error becomes a plain sentence (or JSON) and the right exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from schemas.errors import ConfigurationError, ReviewNeededError, SwitchgearError

if TYPE_CHECKING:
    from flows.backstage import Backstage

EXIT_OTHER = 1
EXIT_CONFIGURATION = 2
EXIT_INCOMPLETE = 3


@contextmanager
def answering(context: typer.Context, as_json: bool) -> Iterator[Backstage]:
    """What a command works with; errors become a plain sentence (or JSON) and the right exit code."""
    try:
        if context.obj is None:
            from flows.backstage import Backstage

            context.obj = Backstage.real()
        yield context.obj
    except ConfigurationError as error:
        _fail(error, EXIT_CONFIGURATION, as_json)
    except ReviewNeededError as error:
        _fail(error, EXIT_INCOMPLETE, as_json)
    except SwitchgearError as error:
        _fail(error, EXIT_OTHER, as_json)
    except KeyboardInterrupt:
        typer.echo("Interrupted. Workers are stopped; the same command goes on from here.", err=True)
        raise typer.Exit(EXIT_OTHER) from None


def exit_with(complete: bool) -> None:
    """End with exit code 3 unless everything is there."""
    if not complete:
        raise typer.Exit(EXIT_INCOMPLETE)


def _fail(error: Exception, code: int, as_json: bool) -> NoReturn:
    typer.echo(f"Error: {error}", err=True)
    if as_json:
        import json

        typer.echo(json.dumps({"error": {"class": type(error).__name__, "message": str(error)}}))
    raise typer.Exit(code) from None
