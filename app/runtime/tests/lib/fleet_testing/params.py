# SPDX-License-Identifier: MIT
"""Parameters of many tests."""

from __future__ import annotations

import pytest

# The kinds of pool, of which only the first is tested each time by what takes long.
FIRST_OF_POOLS = [
    "prefork",
    *(pytest.param(pool, marks=pytest.mark.long) for pool in ("threads", "gevent", "solo")),
]
# FLEET_FAST_POOL: the runtime's prefork pool, or Celery's.
FAST_POOLS = [pytest.param("true", id="fast"), pytest.param("false", id="stock", marks=pytest.mark.long)]
URL = "rediss://worker:pw@redis:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.crt"
