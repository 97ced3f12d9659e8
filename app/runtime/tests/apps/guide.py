"""An app that uses what Celery's user guide has beyond the ordinary."""

# Celery ships no types.
# mypy: disable-error-code="untyped-decorator"

from typing import Any

from celery import Celery

app = Celery("guide", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"
app.conf.result_backend_transport_options = {"result_chord_ordered": False}


@app.task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    """Add them all."""
    return sum(numbers)


@app.task(bind=True)
def grow(self: Any) -> int:
    """Add another task to the chord that this one is of."""
    self.add_to_chord(add.s(5, 5))
    return 1
