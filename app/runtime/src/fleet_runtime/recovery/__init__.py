# SPDX-License-Identifier: MIT
"""Requeues what dead nodes held, and keeps the in-flight messages of live nodes over a reconnect."""
