# SPDX-License-Identifier: MIT
"""Runs of Ansible on the fleet, told as an operator would start them, and read to the last line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from tests.fleet.support.inventory import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# How Ansible ends when it is interrupted, and when it is killed.
ENDS = {signal.SIGINT: 99, signal.SIGKILL: -signal.SIGKILL}


def heed_interrupts() -> None:
    """Undo what a shell does to what it starts in the background, which these tests may be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Run:
    """What a run printed, how it ended, and what it changed."""

    command: list[str]
    code: int
    output: str
    changes: list[tuple[str, str]]  # host and task

    def __str__(self) -> str:
        """Return how it ended, for a failing test."""
        changes = "\n".join(f"  {task} [{host}]" for host, task in self.changes) or "  nothing"
        return f"{' '.join(self.command)}\nexit code {self.code}, changed:\n{changes}\n{self.output[-6000:]}"

    def expect_success(self) -> Run:
        """Return the run, which must have succeeded."""
        assert self.code == 0, str(self)
        return self

    def expect_refusal(self, *words: str) -> None:
        """Assert that it refused to go on, changed nothing, and said why in these words."""
        assert self.code != 0, f"not refused: {self}"
        assert not self.changes, f"changed something before the refusal: {self}"
        missing = [word for word in words if word not in self.output]
        assert not missing, f"the message does not say {missing}: {self}"


@dataclass
class Plays:
    """Runs playbooks on the fleet, as wordy as can be: all that they say is searched for secrets."""

    inventory_arguments: list[str]
    scratch: Path
    outputs: list[str] = field(default_factory=list)
    root: Path = ROOT

    def run(self, *arguments: str, playbook: str = "site.yml", **variables: Any) -> Run:
        """Run a playbook to its end.

        Args:
            arguments: Options of `ansible-playbook`.
            playbook: Which one.
            variables: Variables that are otherwise than in the inventory. They go by a file, since they may
                be secrets.
        """
        with self._started(arguments, playbook, variables) as process:
            output, _ = process.communicate()
        return self._ended(process, output)

    def interrupted(
        self,
        *arguments: str,
        when: Callable[[], bool],
        playbook: str,
        by: signal.Signals = signal.SIGKILL,
        **variables: Any,
    ) -> None:
        """Run a playbook as `run` does, and end it with all its processes as soon as something is so.

        Killed, it is a controller that is lost: nothing that Ansible would do at its end is done.

        Args:
            arguments: Options of `ansible-playbook`.
            when: Whether it is so.
            playbook: Which one.
            by: SIGKILL, or SIGINT for Ctrl-C.
            variables: Variables that are otherwise than in the inventory.

        Raises:
            AssertionError: It ended by itself.
        """
        output: list[str] = []
        with self._started(arguments, playbook, variables, start_new_session=True) as process:
            reader = threading.Thread(target=lambda: output.append(process.communicate()[0]))
            reader.start()
            while process.poll() is None and not when():
                time.sleep(0.2)
            with suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, by)
            reader.join()
        run = self._ended(process, output[0])
        assert run.code == ENDS[by], str(run)

    @property
    def _environment(self) -> dict[str, str]:
        """What a run finds in its environment."""
        return dict(os.environ)

    @property
    def _recap(self) -> Path:
        """Where the run that is under way writes down what it changes."""
        return self.scratch / "recap.json"

    def _started(
        self, arguments: tuple[str, ...], playbook: str, variables: dict[str, Any], **options: Any
    ) -> subprocess.Popen[str]:
        """Return a run that has begun."""
        recap, extra = self._recap, self.scratch / "extra.json"
        recap.unlink(missing_ok=True)
        extra.touch(0o600)
        extra.write_text(json.dumps(variables))
        environment = self._environment | {
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "lab" / "callback_plugins"),
            "LAB_RECAP": str(recap),
            "ANSIBLE_FORCE_COLOR": "0",
        }
        command = [
            "ansible-playbook",
            *self.inventory_arguments,
            "--diff",
            "-vvv",
            *arguments,
            "-e",
            f"@{extra}",
            playbook,
        ]
        return subprocess.Popen(
            command,
            preexec_fn=heed_interrupts,
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def _ended(self, process: subprocess.Popen[str], output: str) -> Run:
        """Return what a run has done that is over."""
        self.outputs.append(output)
        recap = self._recap
        changes = [(host, task) for host, task in json.loads(recap.read_text())] if recap.exists() else []
        return Run(cast("list[str]", process.args), process.returncode, output, changes)
