"""What is compared: the first one is what all others are measured by."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """A way to run a node.

    Attributes:
        name: What the table calls it.
        entry: The app, as `celery --app` wants it.
        environment: What the node finds in its environment besides.
        arguments: Of `celery worker`.
    """

    name: str
    entry: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    def with_pool(self, pool: str) -> Variant:
        """Return the same with another pool."""
        arguments = (*self.arguments, f"--pool={pool}")
        return Variant(f"{self.name}, {pool}", self.entry, self.environment, arguments)


STOCK = Variant("Celery without the runtime", "bench.app", {"BENCH_STOCK": "1"})
RUNTIME = Variant("with the runtime", "fleet_runtime.app")
KOMBU = Variant("with the runtime, kombu's transport", "fleet_runtime.app", {"FLEET_ATOMIC_FETCH": "false"})
ALL = (STOCK, RUNTIME, KOMBU)
