# SPDX-License-Identifier: MIT
"""Measures what nodes cost, with and without the runtime. `make bench` runs it; it is no test."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / ".ansible" / "collections"))  # the roles' filters are asked here, too
sys.path.append(str(ROOT / "app" / "runtime" / "tests" / "lib"))  # servers, as its tests have them
