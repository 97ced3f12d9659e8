# SPDX-License-Identifier: MIT
"""The app that every Celery process of the fleet is started with: `celery -A fleet_runtime.app ...`.

Importing this module loads the app named by FLEET_APP, lays the fleet's settings on it, and is that app:
there is no second one, and no line of the first one changes.
"""

import sys

from fleet_runtime.logging import journal

journal.adopt_streams()  # first, so that whatever fails from here on is seen

if "--detach" in sys.argv:
    # A process of `celery multi`, which only replaces itself with the node. What the app imports would be
    # thrown away, and a node that has died would be back so much later.
    from celery import Celery

    app = Celery()
else:
    from fleet_runtime import extras
    from fleet_runtime.bootstrap import app_loader, configure
    from fleet_runtime.errors import FleetError
    from fleet_runtime.inspect import probe
    from fleet_runtime.settings import FleetSettings

    try:
        settings = FleetSettings.from_environment()
        if settings.component == "flower":
            extras.require("flower", "`celery flower`")
        if settings.component == "beat" and any("redbeat" in word for word in sys.argv):
            extras.require("redbeat", "Beat's scheduler")
        configure.lay_defaults()
        app = app_loader.load(settings.app)
        configure.lay(app, settings)
        probe.register(app, settings.release)
        if settings.component == "worker":
            from fleet_runtime.worker import readiness  # by its name, because only a node is to import it

            readiness.register(app)
        if settings.component == "beat":
            from fleet_runtime.beat import watchdog

            watchdog.register(app)
    except FleetError as error:
        # Any other exception would reach the operator as a traceback through Celery's command line.
        raise SystemExit(f"celery: {error}") from None
