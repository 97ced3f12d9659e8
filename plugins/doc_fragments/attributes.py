# SPDX-License-Identifier: MIT
"""What attributes of modules mean; each module says how far it supports them."""

from __future__ import annotations


class ModuleDocFragment:
    """The fragment C(fleet.celery.attributes)."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what it would change, without a change of the target.
  diff_mode:
    description: Returns what it has changed, or would change in C(check_mode), when in diff mode.
  platform:
    description: Systems on which it works.
    support: full
    platforms: debian
"""

    # Of modules that only look.
    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    details: It changes nothing.
  diff_mode:
    support: N/A
    details: It changes nothing.
"""
