# SPDX-License-Identifier: MIT
"""Answers questions about the fleet: status, readiness, queues, rights, schedule and drains."""
