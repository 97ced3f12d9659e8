# SPDX-License-Identifier: MIT
"""The watchdog of Beat, and its lease."""
