# SPDX-License-Identifier: MIT
"""The systemd journal, and Celery's logging on it."""
