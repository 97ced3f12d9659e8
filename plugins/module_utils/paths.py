# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths on the hosts that several roles share: the role celery_app makes what is there, others use it."""

from __future__ import annotations

ROOT = "/opt/celery"  # an app's releases are in a directory below it
CONFIG_DIR = "/etc/celery"  # the configuration of each process
STATE_DIR = "/var/lib/fleet"  # the lock of the fleet, and the backups of batches
APP_ENV = f"{CONFIG_DIR}/app.env"  # the environment of every process of the app
FLEET = f"{ROOT}/fleet"  # the fleet's own venv, without the app, below it as an app's releases are
FLEET_ENV = f"{CONFIG_DIR}/fleet.env"  # the environment of what runs from there
DESCRIPTION = "fleet-app.json"  # in a release: what those processes must know of the app
COMMAND = "/usr/local/bin/fleet-celery"  # the operator's command


def paths(app: str) -> dict[str, str]:
    """Return the paths of an app.

    Args:
        app: Name of the app.

    Returns:
        `app_dir` (its directory), `current` (the link to the release that runs), `description` (of the app,
        in that release), `config_dir`, `app_env`, `fleet_dir` (the directory of the fleet's own venv),
        `fleet` (the link to the one in use), `fleet_env` and `command`.
    """
    app_dir = f"{ROOT}/{app}"
    return {
        "app_dir": app_dir,
        "current": f"{app_dir}/current",
        "description": f"{app_dir}/current/{DESCRIPTION}",
        "config_dir": CONFIG_DIR,
        "app_env": APP_ENV,
        "fleet_dir": FLEET,
        "fleet": f"{FLEET}/current",
        "fleet_env": FLEET_ENV,
        "command": COMMAND,
    }
