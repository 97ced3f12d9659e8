# SPDX-License-Identifier: MIT
"""Loads the app that FLEET_APP names, and tells errors of the app from errors of the setting."""

from __future__ import annotations

import importlib
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery

from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

RUNTIME = str(Path(__file__).parents[1])  # the folder fleet_runtime


def load(name: str) -> Celery:
    """Return the Celery app with this name.

    Args:
        name: `package.module:attribute`, such as `shop.celery:app`.

    Raises:
        FleetError: There is no such app, or it cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise FleetError(
            f"FLEET_APP is {name!r}, and must be package.module:attribute, such as shop.celery:app."
        )
    app: Any = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(app, part):
            raise FleetError(f"FLEET_APP is {name}, but {module_name} has no {attribute}.")
        app = getattr(app, part)
    if not isinstance(app, Celery):
        raise FleetError(f"FLEET_APP is {name}, which is a {type(app).__name__} and not a Celery app.")
    return app


@contextmanager
def reraising_app_errors(what: str) -> Iterator[None]:
    """Turn an exception of the app's code into a FleetError, and print its traceback.

    Args:
        what: What failed, as the beginning of a sentence: "shop.celery cannot be imported".

    Raises:
        FleetError: The block has raised an exception.
    """
    handled = sys.exception()  # Celery imports an app while it handles a failed first attempt
    try:
        yield
    except FleetError:
        raise
    except Exception as error:
        _forget_context(error, handled)
        traceback.print_exception(type(error), error, _beyond_runtime(error.__traceback__), file=sys.stderr)
        raise FleetError(f"{what}: {type(error).__name__}: {error}".rstrip(".") + ".") from None


def _import(name: str) -> Any:
    """Import a module by its name."""
    with reraising_app_errors(f"{name} cannot be imported"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".startswith(f"{error.name}."):
                raise FleetError(
                    f"FLEET_APP names the module {name}, but there is no module {error.name}."
                ) from None
            raise


def _forget_context(error: BaseException, context: BaseException | None) -> None:
    """Remove an unrelated exception from the context of another one."""
    link: BaseException | None = error
    while link:
        if link.__context__ is context:
            link.__context__ = None
        link = link.__context__


def _beyond_runtime(frames: TracebackType | None) -> TracebackType | None:
    """Return a traceback without its first frames, those of the runtime and of Python's import system."""
    first = frames
    while first and any(part in first.tb_frame.f_code.co_filename for part in (RUNTIME, "importlib")):
        first = first.tb_next
    return first or frames
