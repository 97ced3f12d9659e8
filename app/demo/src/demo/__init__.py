# SPDX-License-Identifier: MIT
"""A small Celery app, enough to prove a fleet."""
