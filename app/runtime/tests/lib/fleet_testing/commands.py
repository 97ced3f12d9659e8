# SPDX-License-Identifier: MIT
"""Celery's commands as the fleet runs them, for tests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fleet_testing.broker import Broker

CELERY = Path(sys.executable).with_name("celery")
ENTRY = ("-A", "fleet_runtime.app")
# How a node is run in tests: nothing that others would have to answer.
FLAGS = ("--concurrency=2", "--without-gossip", "--without-mingle", "--heartbeat-interval=10")
APPS = str(Path(__file__).parents[2] / "apps")  # the tests' own
PATIENCE = 40  # seconds; a machine that does other things needs some just to import Celery


class Fleet:
    """An app on a broker: what a component finds in its environment, and the commands that run in it."""

    def __init__(self, broker: Broker, app: str, **environment: str) -> None:
        """Remember the app, and variables for all of its components."""
        self.broker = broker
        self.environment = {"FLEET_APP": app, "PATH": "/usr/bin:/bin", **environment}

    def component(self, name: str) -> dict[str, str]:
        """Return the whole environment of a component."""
        url = self.broker.url(name)
        return {
            **self.environment,
            "FLEET_COMPONENT": name,
            "CELERY_BROKER_URL": url,
            "CELERY_RESULT_BACKEND": url,
        }

    def run(self, component: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return run(*words, environment=self.component(component))

    def worker(self, name: str, *words: str, **environment: str) -> Daemon:
        """Start a node; the caller waits until it is ready."""
        return Daemon(
            ["worker", f"--hostname={name}@test", "--loglevel=INFO", "--logfile=/dev/null", *words],
            {**self.component("worker"), **environment},
            ready=f"{name}@test ready.",
        )

    def beat(self, *words: str, **environment: str) -> Daemon:
        """Start Beat with its schedule in Redis."""
        return Daemon(
            ["beat", "--scheduler=redbeat.RedBeatScheduler", "--loglevel=INFO", "--pidfile=", *words],
            {**self.component("beat"), **environment},
            ready="beat: Starting...",
        )


class Daemon:
    """A process that goes on until the end of a `with`, which it enters when it is ready."""

    def __init__(
        self, words: list[str], environment: Mapping[str, str], ready: str, entry: Sequence[str] = ENTRY
    ) -> None:
        """Start it; `entry` names the app, by default the one of the fleet."""
        self.ready = ready
        self.log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [CELERY, *entry, *words], env=environment, stdout=self.log, stderr=self.log
        )

    def __enter__(self) -> Self:
        """Wait until it says that it is ready."""
        self.wait_for(self.ready)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it as systemd does."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()

    def printed(self) -> str:
        """Return all that it has printed so far."""
        return Path(self.log.name).read_text(errors="replace")

    def lines(self, text: str) -> list[str]:
        """Return the lines that it has printed so far with a text in them."""
        return [line for line in self.printed().splitlines() if text in line]

    def wait_for(self, text: str, count: int = 1) -> list[str]:
        """Wait until so many lines have a text in them, and return them."""
        deadline = time.monotonic() + PATIENCE
        while len(found := self.lines(text)) < count:
            alive = self.process.poll() is None
            assert alive and time.monotonic() < deadline, [f"{text!r} is not in:", *self.lines("")]
            time.sleep(0.05)
        return found


def run(*words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `celery -A fleet_runtime.app` with these words and no other environment."""
    return subprocess.run(
        [CELERY, *ENTRY, *words],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@contextmanager
def together(daemons: Mapping[str, Daemon]) -> Iterator[dict[str, Daemon]]:
    """Yield daemons when all are ready; end them all at once, and only then wait for each."""
    with ExitStack() as stack:
        for daemon in daemons.values():
            stack.callback(daemon.process.kill)  # if another one never was ready
        yield {name: stack.enter_context(daemon) for name, daemon in daemons.items()}
        for daemon in daemons.values():
            daemon.process.terminate()


def wait_until(happened: Callable[[], Any]) -> None:
    """Wait until a function says so."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def shop(broker: Broker) -> Fleet:
    """Return an app that names another broker, on a broker."""
    return Fleet(broker, "shop:app", PYTHONPATH=APPS, FLEET_RELEASE="3fa9c1d2e4b5")


def noted(folder: Path, what: str) -> list[str]:
    """Return which tasks have started or ended."""
    notes = folder / "notes"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [line.split()[0] for line in lines if line.endswith(what)]
