"""What every Celery process of the fleet is started through, whatever app it runs."""

from fleet_runtime.once import BusyError, once

__all__ = ["BusyError", "once"]
