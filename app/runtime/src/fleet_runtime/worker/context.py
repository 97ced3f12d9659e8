# SPDX-License-Identifier: MIT
"""The state of one node that its boot steps, its consumer and its requests share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_runtime.recovery.inflight import InFlight
    from fleet_runtime.settings import FleetSettings
    from fleet_runtime.worker.readiness import ReadinessGate
    from fleet_runtime.worker.request import DeadLetterCandidate


@dataclass
class SelfTest:
    """The state of the task by which a node tests itself.

    Attributes:
        passed_at: When it passed, in seconds since 1970; None if it has not.
        skipped: Whether it was skipped, because Redis was full.
        started: When the last attempt began, by the monotonic clock.
        error: Why the last attempt failed; empty if it did not.
        failed: Whether an attempt has failed, or took too long.
    """

    passed_at: float | None = None
    skipped: bool = False
    started: float = 0.0
    error: str = ""
    failed: bool = False


@dataclass(eq=False)
class WorkerContext:
    """The state that the parts of a node share. The boot step `NodeSetup` creates it, as `worker.fleet`.

    Attributes:
        node: Name of the node.
        settings: The fleet's settings.
        self_test: The state of the self-test.
        postponed: Messages that Redis has refused as dead letters so far, by delivery tag. They stay
            unacknowledged.
        in_flight: The unacknowledged messages; None until the consumer is created.
        readiness_gate: Holds the queues back until the self-test has passed; None until the consumer is
            created.
    """

    node: str
    settings: FleetSettings
    self_test: SelfTest = field(default_factory=SelfTest)
    postponed: dict[str, DeadLetterCandidate] = field(default_factory=dict)
    in_flight: InFlight | None = None
    readiness_gate: ReadinessGate | None = None

    @classmethod
    def of(cls, consumer: Any) -> WorkerContext:
        """Return the context of the node that a consumer belongs to."""
        context: WorkerContext = consumer.controller.fleet
        return context
