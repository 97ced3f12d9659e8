# SPDX-License-Identifier: MIT
"""An app whose imports take memory, as those of data libraries do."""

import gc
import re
from pathlib import Path

from celery import Celery

app = Celery("heavy")
app.conf.task_default_queue = "default"

# As many objects as libraries leave behind. The garbage collector looks at each of them.
LOADED = [[number] for number in range(400_000)]


@app.task
def private() -> int:
    """Return how many MiB this process has for itself, once garbage was collected."""
    gc.collect()
    found = re.findall(r"^Private_\w+: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return sum(map(int, found)) // 1024
