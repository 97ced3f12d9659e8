# SPDX-License-Identifier: MIT
"""The sub-commands of `celery -A fleet_runtime.app`."""
