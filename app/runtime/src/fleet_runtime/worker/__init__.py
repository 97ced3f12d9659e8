# SPDX-License-Identifier: MIT
"""What a worker node does besides Celery's own: consumer, request, readiness, watchdog, events, results."""
