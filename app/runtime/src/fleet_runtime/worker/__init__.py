# SPDX-License-Identifier: MIT
"""The parts of a node: boot steps, consumer, requests, readiness, watchdog, events, results."""
