# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths on the hosts that several roles share: the role celery_app makes what is there, others use it."""

from __future__ import annotations

ROOT = "/opt/celery"  # an app's releases are in a directory below it
APP_ENV = "/etc/celery/app.env"  # the environment of every process of the app
COMMAND = "/usr/local/bin/fleet-celery"  # the operator's command


def paths(app: str) -> dict[str, str]:
    """Return the paths of an app.

    Args:
        app: Name of the app.

    Returns:
        `app_dir` (its directory), `current` (the link to the release that runs), `app_env` and `command`.
    """
    app_dir = f"{ROOT}/{app}"
    return {"app_dir": app_dir, "current": f"{app_dir}/current", "app_env": APP_ENV, "command": COMMAND}
