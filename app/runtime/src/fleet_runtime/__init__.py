# SPDX-License-Identifier: MIT
"""What every Celery process of the fleet is started through, whatever app it runs."""

from fleet_runtime.once import BusyError, once
from fleet_runtime.publish import PartlyPublishedError, publish_many

__all__ = ["BusyError", "PartlyPublishedError", "once", "publish_many"]
