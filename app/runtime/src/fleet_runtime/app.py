# SPDX-License-Identifier: MIT
"""The app that every Celery process of the fleet is started with: `celery -A fleet_runtime.app ...`.

Importing this module loads the app that FLEET_APP names, and configures it with the fleet's settings. `app`
is that app: there is no second one, and its code is unchanged. With FLEET_APP_FILE, which Flower and the
operator's commands have, it is made from the description of that app.
"""

import os
import sys

from fleet_runtime.logging import journal

if os.environ.get("FLEET_COMPONENT") == "worker":
    # Before the settings are parsed, so that the journal has every later error.
    journal.adopt_streams(os.environ.get("FLEET_NODE", ""))

if "--detach" in sys.argv:
    # A process of `celery multi` replaces itself with the node. To import the app here would only delay the
    # start of the node.
    from celery import Celery

    app = Celery()
else:
    from fleet_runtime import extras
    from fleet_runtime.bootstrap import app_loader, configure
    from fleet_runtime.compat.surface import may_replace
    from fleet_runtime.errors import FleetError
    from fleet_runtime.inspect import description, probe
    from fleet_runtime.messages import json_decoder
    from fleet_runtime.settings import FleetSettings
    from fleet_runtime.transport import broadcast

    try:
        settings = FleetSettings.from_environment()
        if settings.component == "flower":
            extras.require("flower", "`celery flower`")
        if settings.component == "beat" and any("redbeat" in word for word in sys.argv):
            extras.require("redbeat", "Beat's scheduler")
        if settings.is_full:
            json_decoder.register_json()
        configure.override_task_defaults()
        app = description.load(settings.app_file) if settings.app_file else app_loader.load(settings.app)
        configure.configure(app, settings)
        if settings.is_full:
            broadcast.patch_results(may_replace)
            if settings.component == "flower":
                broadcast.patch_fanout(may_replace)
        probe.register(app, settings.release)
        if settings.component == "worker":
            from fleet_runtime.worker import readiness  # only a node imports it

            readiness.register(app)
        if settings.component == "beat":
            from fleet_runtime.beat import lease, watchdog

            watchdog.register(app, settings.beat_watchdog)
            lease.register(app)
    except FleetError as error:
        # Celery's command line would print another exception with its traceback.
        raise SystemExit(f"celery: {error}") from None
