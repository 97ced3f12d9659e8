# SPDX-License-Identifier: MIT
"""Runs the processes that are measured."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PATIENCE = 120.0  # seconds for anything to happen
STOP = 30.0  # seconds for a process to end
LOOK = 0.05  # seconds between two looks


class Group:
    """Processes, each the leader of a session."""

    def __init__(self, commands: Sequence[Sequence[str]], environment: Mapping[str, str], log: Path) -> None:
        """Start them."""
        self._log = log
        self._started: list[subprocess.Popen[bytes]] = []
        with log.open("ab") as file:
            for command in commands:
                self._started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=file, stderr=file, start_new_session=True
                    )
                )

    @property
    def leaders(self) -> list[int]:
        """The leaders' numbers, which are those of their sessions, too."""
        return [process.pid for process in self._started]

    def said(self) -> str:
        """Return what they have printed."""
        return self._log.read_text(errors="replace")

    def await_that(self, happened: Callable[[], bool], problem: str) -> None:
        """Wait until something has happened.

        Raises:
            RuntimeError: It does not, or a process ends before.
        """
        deadline = time.monotonic() + PATIENCE
        while not happened():
            codes = [process.poll() for process in self._started]
            if any(code is not None for code in codes) or time.monotonic() > deadline:
                raise RuntimeError(f"{problem}; exit codes: {codes}\n{self.said()[-4000:]}")
            time.sleep(LOOK)

    def stop(self) -> None:
        """Stop them, and what they leave behind."""
        for process in self._started:
            process.terminate()
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def running(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> Iterator[Group]:
    """Run processes for as long as they are needed."""
    with TemporaryDirectory() as folder:
        group = Group(commands, environment, Path(folder) / "log")
        try:
            yield group
        finally:
            group.stop()
