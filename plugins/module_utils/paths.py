# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths on the hosts that several roles share: the role celery_app makes what is there, others use it."""

from __future__ import annotations

ROOT = "/opt/celery"  # an app's releases are in a directory below it
CONFIG_DIR = "/etc/celery"  # the configuration of each process
STATE_DIR = "/var/lib/fleet"  # the lock of the fleet, and the backups of batches
APP_ENV = f"{CONFIG_DIR}/app.env"  # the environment of every process of the app
COMMAND = "/usr/local/bin/fleet-celery"  # the operator's command


def paths(app: str) -> dict[str, str]:
    """Return the paths of an app.

    Args:
        app: Name of the app.

    Returns:
        `app_dir` (its directory), `current` (the link to the release that runs), `config_dir`, `app_env` and
        `command`.
    """
    app_dir = f"{ROOT}/{app}"
    return {
        "app_dir": app_dir,
        "current": f"{app_dir}/current",
        "config_dir": CONFIG_DIR,
        "app_env": APP_ENV,
        "command": COMMAND,
    }
