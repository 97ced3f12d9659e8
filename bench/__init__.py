"""Measures what nodes cost, with and without the runtime. `make bench` runs it; it is no test."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
