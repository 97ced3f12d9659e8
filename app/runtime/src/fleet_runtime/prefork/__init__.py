# SPDX-License-Identifier: MIT
"""The prefork pool: how tasks reach child processes, time limits and memory."""
