# SPDX-License-Identifier: MIT
"""Old name of `fleet_runtime.broker.functions`, for applications outside of the fleet.

It goes with the next release.
"""

from __future__ import annotations

import warnings

from fleet_runtime.broker.functions import adopt

__all__ = ["adopt"]

warnings.warn("The module is fleet_runtime.broker.functions now.", FutureWarning, stacklevel=2)
