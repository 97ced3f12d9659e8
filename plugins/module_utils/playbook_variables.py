# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The extra variables (`-e`) of the fleet's playbooks."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

PREFIX = "fleet_"

# Former name -> name. docs/upgrading.md has the same table.
RENAMED = {
    "batches": "fleet_batches",
    "decommission_anyway": "fleet_decommission_anyway",
    "decommission_gone": "fleet_decommission_gone",
    "decommission_wait": "fleet_decommission_timeout",
    "drain_anyway": "fleet_drain_anyway",
    "lock_takeover": "fleet_lock_takeover",
    "pools": "fleet_restart_pools",
    "release": "fleet_release_id",
    "rotate": "fleet_rotate",
    "rotate_ca": "fleet_rotate_ca",
    "rotate_finish": "fleet_rotate_finish",
    "rotate_no_log": "fleet_rotate_no_log",
    "secrets_file": "fleet_secrets_file",
    "tier": "fleet_restart_tier",
    "why": "fleet_drain_reason",
}
NAMES = frozenset(RENAMED.values())


def problems(given: Iterable[str], known: Collection[str]) -> list[str]:
    """Return a sentence for each extra variable with a former name, or with a name that nothing reads.

    Args:
        given: Names of the extra variables of this run. Variables of the inventory are none of them.
        known: Variables of the inventory that have the prefix `fleet_`, which an operator may overrule.
    """
    found = []
    for name in sorted(given):
        if name in RENAMED:
            found.append(f"The extra variable {name} is named {RENAMED[name]} now: -e {RENAMED[name]}=...")
        elif name.startswith(PREFIX) and name not in NAMES and name not in known:
            near = difflib.get_close_matches(name, [*NAMES, *known], n=1)
            found.append(
                f"No playbook reads the extra variable {name}.{f' Is it {near[0]}?' if near else ''}"
            )
    return found
