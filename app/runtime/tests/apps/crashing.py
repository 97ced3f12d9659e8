# SPDX-License-Identifier: MIT
"""An app that ends its node by an error in the node's loop, once a file is there."""

import os
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps

app = Celery("crashing", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"


@app.task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


class Crash(bootsteps.StartStopStep):
    """Looks for the file."""

    def start(self, parent: Any) -> None:
        """Look for it again and again."""
        parent.timer.call_repeatedly(0.1, self.look, (parent,))

    def look(self, consumer: Any) -> None:
        """Let the loop fail if it is there."""
        if Path(os.environ["CRASH"]).exists():
            consumer.call_soon(self.fail)

    def fail(self) -> None:
        """Fail with an exception that no code expects."""
        raise ArithmeticError("what nobody has foreseen")


app.steps["consumer"].add(Crash)
