# SPDX-License-Identifier: MIT
"""Options of modules that connect to Redis; module_utils/redis_tls.py has their specification."""

from __future__ import annotations


class ModuleDocFragment:
    """The fragment C(fleet.celery.redis): where Redis is."""

    DOCUMENTATION = r"""
options:
  host:
    description: Name or address of Redis, for which its certificate must be.
    type: str
    required: true
  port:
    description: Its TLS port.
    type: int
    required: true
  ca_file:
    description: CA certificate that the server's must chain to.
    type: path
    required: true
  timeout:
    description: Seconds to wait for one answer.
    type: int
    default: 10
requirements: [python3-redis]
"""

    # As whom to log in.
    LOGIN = r"""
options:
  user:
    description: User of Redis's ACL.
    type: str
    default: admin
  password:
    description: The user's password. The certificate of the server is verified before it is sent.
    type: str
    required: true
  db:
    description: Number of the fleet's database.
    type: int
    default: 0
"""
