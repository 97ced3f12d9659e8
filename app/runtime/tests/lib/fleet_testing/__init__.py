# SPDX-License-Identifier: MIT
"""What the runtime's tests share: a Redis with the fleet's access rules, Celery's commands, odd messages."""
