# SPDX-License-Identifier: MIT
"""Shared parts of the tests: a Redis with the fleet's access rules, Celery's commands, malformed messages."""
