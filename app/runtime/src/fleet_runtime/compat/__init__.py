# SPDX-License-Identifier: MIT
"""Supported versions of Celery, kombu, billiard and redis-py, and the patches that they need."""
