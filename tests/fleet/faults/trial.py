# SPDX-License-Identifier: MIT
"""One trial: tasks are sent, something dies, and then it is counted what became of each task."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from fleet_runtime.broker import keys
from kombu.transport.redis import PRIORITY_STEPS, Channel

from tests.fleet.faults.load import Load
from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.fleet.faults.faults import Fault
    from tests.fleet.faults.ledger import Ledger, Run
    from tests.fleet.faults.load import Sent
    from tests.fleet.support.fleet import Fleet

RATE = 60  # tasks a second
MOST = 8  # tasks at a time, of which a queue's share is made: pools that can run more get no more
CALM = 5  # seconds of load before a fault, and after it
PATIENCE = 60  # seconds beyond what a fault allows, until what has not run counts as lost

# The ends of the keys in which the messages of a queue are, one for each priority.
PRIORITIES = tuple(f"{Channel.sep}{step}" if step else "" for step in PRIORITY_STEPS)


@dataclass
class Trial:
    """What was sent, what the ledger says, and where the rest is."""

    name: str
    began: float  # of the fault
    ended: float
    sent: list[Sent]
    runs: list[Run]
    left: dict[str, str] = field(default_factory=dict)  # name of a task: the key in which it still is
    problem: str = ""  # why the fault itself did not go as it should

    @property
    def accepted(self) -> dict[str, Sent]:
        """What the broker said that it has, by name."""
        return {sent.name: sent for sent in self.sent if sent.accepted}

    @property
    def done(self) -> dict[str, float]:
        """When each task had been done for the first time."""
        ends: dict[str, float] = {}
        for run in self.runs:
            if run.end:
                ends[run.name] = min(run.end, ends.get(run.name, run.end))
        return ends

    @property
    def undone(self) -> set[str]:
        """What was accepted, and never done."""
        return self.accepted.keys() - self.done.keys()

    @property
    def lost(self) -> list[str]:
        """What was accepted, was never done, and is nowhere any more; when it was sent may tell why."""
        gone = sorted(self.undone - self.left.keys())
        sent = self.accepted
        after = {name: sent[name].submitted - self.began for name in gone}
        return [f"{name} ({sent[name].queue}, sent at {after[name]:+.2f} s)" for name in gone]

    @property
    def stuck(self) -> list[str]:
        """What was accepted, was never done, and still lies somewhere; the dead letters are a place, too."""
        return sorted(f"{name} in {self.left[name]}" for name in self.undone & self.left.keys())

    @property
    def begun_again(self) -> list[str]:
        """What was begun more than once."""
        return several(run.name for run in self.runs)

    @property
    def done_twice(self) -> list[str]:
        """What was done more than once."""
        return several(run.name for run in self.runs if run.end)

    @property
    def gap(self) -> float:
        """The longest time in which nothing began in one of the queues, although tasks were sent to it."""
        queues = {sent.name: sent.queue for sent in self.sent}
        gaps = [0.0]
        for queue in set(queues.values()):
            asked = [sent.submitted for sent in self.sent if sent.queue == queue]
            starts = [run.start for run in self.runs if queues.get(run.name) == queue]
            times = sorted([asked[0], *starts, asked[-1]])
            gaps += [later - earlier for earlier, later in pairwise(times)]
        return max(gaps)

    @property
    def wait(self) -> float:
        """The longest time from when a task was submitted to its end, of those that were accepted."""
        done = self.done
        waits = [done[name] - sent.submitted for name, sent in self.accepted.items() if name in done]
        return max(waits, default=0.0)

    def row(self) -> dict[str, str | int | float]:
        """Return the counts, as the table has them."""
        return {
            "fault": self.name,
            "submitted": len(self.sent),
            "accepted": len(self.accepted),
            "run": len(self.done),
            "begun again": len(self.begun_again),
            "run twice": len(self.done_twice),
            "stuck": len(self.stuck),
            "lost": len(self.lost),
            "longest gap, s": round(self.gap, 1),
            "longest wait, s": round(self.wait, 1),
        }

    def broken(self, fault: Fault) -> list[str]:
        """Return what the fleet promises, and did not keep."""
        found = [self.problem] if self.problem else []
        if self.lost:
            found.append(f"{len(self.lost)} tasks are lost: {self.lost[:10]}")
        if self.stuck:
            found.append(f"{len(self.stuck)} tasks have not run: {self.stuck[:10]}")
        if self.done_twice and not fault.twice:
            found.append(f"{len(self.done_twice)} tasks were done twice: {self.done_twice[:10]}")
        if self.wait > fault.wait:
            found.append(f"a task took {self.wait:.1f} s, and no more than {fault.wait:g} s are promised")
        return found


def several(names: Iterable[str]) -> list[str]:
    """Return the names that are there more than once.

    >>> several("abca")
    ['a']
    """
    return sorted(name for name, times in Counter(names).items() if times > 1)


def run(
    fleet: Fleet, ledger: Ledger, fault: Fault, rate: float = RATE, queues: Iterable[str] | None = None
) -> Trial:
    """Let a fault happen to a fleet that has work to do, and return what became of the work.

    Args:
        fleet: The fleet.
        ledger: Of the tasks.
        fault: What happens.
        rate: Tasks that are sent a second.
        queues: Where they are sent; by default to all queues.
    """
    of_queues = {queue: share for queue, share in shares(fleet).items() if queues is None or queue in queues}
    name = f"{fault.name}-{int(time.time())}"
    problem = ""
    with Load(fleet.broker, name, of_queues, rate) as load:
        time.sleep(CALM)
        began = time.time()
        try:
            fault.happens(fleet)
        except Exception as error:  # what became of the tasks is told all the same
            problem = f"{type(error).__name__}: {error}"
        ended = time.time()
        time.sleep(CALM)
    trial = Trial(fault.name, began, ended, load.sent, [], problem=problem)

    def is_over() -> bool:
        # In this order: a run is in the ledger before its message is gone, so that nothing is in neither.
        trial.left = whereabouts(fleet, name)
        trial.runs = ledger.runs(name)
        return not trial.undone and not trial.left

    with suppress(AssertionError):  # then it is what there is to tell
        eventually(is_over, timeout=fault.wait + PATIENCE, pause=1)
    return trial


def shares(fleet: Fleet) -> dict[str, int]:
    """Return what each queue gets of the load: as much as its nodes can bear, within bounds."""
    slots: Counter[str] = Counter()
    for node in fleet.nodes:
        slots.update(dict.fromkeys(node.queues, node.options.get("concurrency", 1)))
    return {queue: min(number, MOST) for queue, number in slots.items()}


def whereabouts(fleet: Fleet, trial: str) -> dict[str, str]:
    """Return the key in which each message of a trial is, be it in a queue, with a node or dead.

    All at one moment: a message that moves meanwhile would be seen nowhere.
    """
    queues = [f"{queue}{step}" for queue in fleet.queues for step in PRIORITIES]
    hashes = [keys.UNACKED, *(keys.unacked(node.celery_name) for node in fleet.nodes), keys.DEAD_LETTERS]
    with fleet.broker.connect("admin") as client:
        transaction = client.pipeline(transaction=True)
        for key in queues:
            transaction.lrange(key, 0, -1)
        for key in hashes:
            transaction.hvals(key)
        messages = dict(zip([*queues, *hashes], transaction.execute(), strict=True))
    ours = re.compile(rf"\b{re.escape(trial)}:\d+")  # Celery shows the arguments beside the encoded body
    return {task: key for key, texts in messages.items() for task in ours.findall("\n".join(texts))}
