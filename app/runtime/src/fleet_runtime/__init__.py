# SPDX-License-Identifier: MIT
"""The runtime of the fleet's Celery processes, and functions for their apps."""

from fleet_runtime.once import BusyError, once
from fleet_runtime.publish import PartlyPublishedError, publish_many

__all__ = ["BusyError", "PartlyPublishedError", "once", "publish_many"]
