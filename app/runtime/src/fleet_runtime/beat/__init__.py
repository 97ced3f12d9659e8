# SPDX-License-Identifier: MIT
"""What a Beat process does besides Celery's own."""
