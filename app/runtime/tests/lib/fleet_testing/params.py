# SPDX-License-Identifier: MIT
"""Parameters of many tests."""

from __future__ import annotations

import pytest

# The kinds of pool, of which only the first is tested each time by what takes long.
FIRST_OF_POOLS = [
    "prefork",
    *(pytest.param(pool, marks=pytest.mark.long) for pool in ("threads", "gevent", "solo")),
]
# FLEET_ATOMIC_FETCH: the runtime's own transport and pool, or kombu's and Celery's.
TRANSPORTS = [pytest.param("true", id="own"), pytest.param("false", id="kombu", marks=pytest.mark.long)]
URL = "rediss://worker:pw@redis:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.crt"
