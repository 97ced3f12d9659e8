# SPDX-License-Identifier: MIT
"""Old name of `fleet_runtime.recovery.requeue`.

The unit of a node runs `python -m fleet_runtime.give_back` in whatever release is current, and a rollback may
go to a release that has only this name. It can go when no kept release is that old.
"""

from __future__ import annotations

from fleet_runtime.recovery.requeue import main

if __name__ == "__main__":
    main()
