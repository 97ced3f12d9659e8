# SPDX-License-Identifier: MIT
"""A pytest plugin for the process that runs Celery's integration tests.

SUITE_WORKER says where the tests' worker is: `outside`, a process of its own that runs already, or `inside`,
a thread, as Celery's own fixture has it. SUITE_RUNTIME=true lays the fleet's settings on the app, as those of
the component `web`, or of a worker. SUITE_OPERATOR is then the URL by which queues are purged.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import celery.contrib.pytest as fixtures
import pytest
from celery.app.control import Control
from celery.utils import nodenames

from tests.upstream import suite_app  # noqa: F401 - before the tests import what it replaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLEET = {name: value for name, value in os.environ.items() if name.startswith(("CELERY_", "FLEET_"))}
pytest_plugins = ("celery.contrib.pytest",)


@pytest.fixture(scope="session")
def outside_worker(celery_session_app: Any, celery_includes: Any, celery_class_tasks: Any) -> Iterator[None]:
    """Let the sender know the tasks; the worker is a process of its own."""
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    yield


def purge_as_operator(self: Control, connection: Any = None) -> int:
    """Empty the queues before a test, as an operator of the fleet may; applications may not."""
    url = os.environ["SUITE_OPERATOR"]
    with self.app._connection(url, transport_options={"ack_emulation": False}) as operator:
        return int(self.app.amqp.TaskConsumer(operator).purge())


@contextmanager
def laid_app(create: Callable[..., Any], **options: Any) -> Iterator[Any]:
    """Yield the app that Celery's fixture makes, with the fleet's settings on it."""
    from fleet_runtime.bootstrap import configure
    from fleet_runtime.compat.surface import may_replace
    from fleet_runtime.settings import FleetSettings
    from fleet_runtime.transport import broadcast
    from fleet_runtime.worker import bootsteps, readiness

    with create(**options) as app:
        os.environ.update(FLEET)
        settings = FleetSettings.from_environment()
        configure.configure(app, settings)
        broadcast.patch_results(may_replace)
        if settings.component == "worker":
            readiness.register(app)
            # A node's app has them from its start; the tests have an app for the worker and others beside it.
            app.conf.broker_transport_options.update(bootsteps.own_keys("tests@test"))
        # Some tests start commands of their own, which are to find what the test gives them. A worker in this
        # process reads the environment as it starts.
        if os.environ["SUITE_WORKER"] == "outside":
            for variable in [name for name in os.environ if name.startswith(("CELERY_", "FLEET_"))]:
                del os.environ[variable]
        yield app


if os.environ["SUITE_WORKER"] == "outside":
    # The tests of `inspect` know the worker by the name that it would have as a thread of this process.
    nodenames.anon_nodename = lambda *_, **__: os.environ["SUITE_NODE"]
    fixtures.celery_session_worker = outside_worker
if os.environ.get("SUITE_RUNTIME") == "true":
    from fleet_runtime.bootstrap.configure import override_task_defaults

    override_task_defaults()
    create_app = fixtures._create_app  # its fixtures look it up when they run
    fixtures._create_app = lambda **options: laid_app(create_app, **options)
    Control.purge = Control.discard_all = purge_as_operator
