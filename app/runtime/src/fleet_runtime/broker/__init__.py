# SPDX-License-Identifier: MIT
"""Redis: key names, functions, references to unacknowledged messages, behaviour at its memory limit."""
