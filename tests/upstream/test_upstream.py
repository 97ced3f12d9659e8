# SPDX-License-Identifier: MIT
"""Celery's and kombu's own integration tests: through the runtime they end as with Celery alone.

`make upstream` runs them. The runtime has a Redis with TLS and the fleet's ACL, Celery alone a plain one.
What differs on purpose is in differences.toml, with the reasons; docs/compatibility.md tells users of it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from bench.servers import Plain
from fleet_testing.broker import HOST, PASSWORDS, Broker
from fleet_testing.commands import Daemon, Fleet
from tests.unit.rendering import Role
from tests.upstream.comparison import Comparison, Group, groups
from tests.upstream.suite import FAILED, ROOT, Outcome, Suite, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

CELERY_FILES = (
    "test_beat.py",
    "test_canvas.py",
    "test_connection_recovery.py",
    "test_group_chains.py",
    "test_inspect.py",
    "test_loader.py",
    "test_logfile_format.py",
    "test_redis_backend.py",
    "test_request_backend_down.py",
    "test_serialization.py",
    "test_tasks.py",
    "test_worker.py",
)
# Left out: test_security (disables serializers for the whole process), leaks of Celery itself, the cache and
# database backends, and `celery upgrade`, which uses no worker.
# Tests that need a worker in their own process, or one with a single process, beside those that fail with
# Celery alone without it.
CELERY_INSIDE = Group(
    "",
    [
        # They do a worker's part, to which an application has no right.
        "test_redis_backend.py::test_chord_part_return_records_each_header_task_once",
        "test_tasks.py::test_tasks::test_revoke_keeps_state_of_task_started_elsewhere",
        # Its task counts its runs in the process that runs it.
        "test_tasks.py::test_tasks::test_retry",
    ],
)
KOMBU_FILES = ("test_redis.py", "test_redis_brpop_qos.py")
# What the inventory would have of what kombu's tests use; a pattern where a name is random, or for several.
KOMBU_RIGHTS = {
    "redis_queues": (
        *("test", "test_*", "simple_*_test", "priority_*", "direct1", "rk_direct?", "topic?", "fanout?"),
        *("batch_*", "expire_*", "binding_*", "restore_*", "reconnect-*", "brpop*", "health_*_queue"),
        "sfc_*_q",
    ),
    "redis_expiring_queues": ("expire_*", "binding_*"),
    "redis_broadcasts": {
        **dict.fromkeys(("test_fanout", "health_live_exchange", "health_drop_exchange"), ""),
        "sfc_compat_to_compat": "",
        "batch_fanout_exchange": "worker.created",
    },
    # Names that a test has for what is unacknowledged, and for a set of deadlines. And queues that a test
    # deletes, which only the fleet's operator may.
    "redis_app_key_prefixes": {
        "worker": [
            *("restore_", "brpop-qos-", "_kombu.binding_deadlines_"),
            *("reconnect-", "binding_sticky_", "binding_delete_"),
        ]
    },
}
PAGES = ROOT / ".cache" / "test" / "upstream"  # lab/test.py prints what is there
TRIES = 3  # of a test that differs, and is not listed: a difference is what differs each time
CONCURRENCY = "4"
NODE = "suite@test"
STOCK, RUNTIME = "stock", "runtime"
Outcomes = dict[str, Outcome]


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Plain]:
    """Yield a Redis without TLS and users, for Celery alone."""
    folder = tmp_path / "plain"
    folder.mkdir()
    server = Plain(Broker.program_path(), folder)
    yield server
    server.stop()


@contextmanager
def secured(folder: Path, **rights: Any) -> Iterator[Broker]:
    """Run a Redis as the fleet has it, in a new folder, whose users have some rights besides."""
    folder.mkdir()
    own = {"redis_passwords": PASSWORDS, "__redis_has_client_setinfo": True, "redis_exchanges": ["topics"]}
    role = Role("redis", **own, **rights)
    server = Broker(folder, role.template("users.acl.j2"))
    try:
        yield server
    finally:
        server.stop()


def suite_of(package: str, plugin: str, files: Sequence[str]) -> Suite:
    """Return the tests of a package; without them, skip."""
    try:
        return Suite(package, plugin, files)
    except UnavailableError as error:
        tell(package, f"### {package}: skipped\n\n{error}\n\n")
        pytest.skip(str(error))


def tell(package: str, text: str) -> None:
    """Write a page that lab/test.py prints."""
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / f"{package}.md").write_text(text)


class Side:
    """One of the two that are compared in Celery's suite: Celery alone, or Celery through the runtime."""

    def __init__(self, name: str, suite: Suite, server: Plain | Broker) -> None:
        """Remember the suite, and the server that this side has."""
        self.name = name
        self.suite = suite
        self.server = server
        self.variables = {
            "TEST_BROKER": server.url("web"),
            "TEST_BACKEND": server.url("web"),
            "SUITE_NODE": NODE,
            "SUITE_REDIS": server.url("admin"),
            "SUITE_OPERATOR": server.url("ops"),
        }

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Run the worker outside of the tests' process."""
        app = "tests.upstream.suite_app:app"
        words = ("--pool=prefork", f"--concurrency={CONCURRENCY}")
        environment = self.suite.environment(**self.variables)
        if isinstance(self.server, Broker):
            # What the app itself names as broker does not matter: the runtime lays the environment's on it.
            with Fleet(self.server, app, **environment).worker(NODE.split("@")[0], *words):
                yield
            return
        stock = ["worker", f"--hostname={NODE}", "--loglevel=INFO", *words]
        with Daemon(stock, environment, ready=f"{NODE} ready.", entry=("-A", app)):
            yield

    def outside(self, run: str, only: Collection[str] | None = None) -> Outcomes:
        """Run the tests with the worker outside; the tests' process is an application that sends tasks."""
        return self._run(run, "web", "outside", only)

    def inside(self, run: str, only: Collection[str] | None = None) -> Outcomes:
        """Run the tests with the worker in a thread of their own process."""
        return self._run(run, "worker", "inside", only)

    def _run(self, run: str, component: str, worker: str, only: Collection[str] | None) -> Outcomes:
        """Run the tests in a process that is this component of a fleet, or has Celery alone."""
        variables = {**self.variables, "SUITE_WORKER": worker}
        if isinstance(self.server, Broker):
            url = self.server.url(component)
            variables |= {"TEST_BROKER": url, "TEST_BACKEND": url, **as_component(self.server, component)}
        return self.suite.run(f"{self.name}-{run}", variables, only)


def as_component(server: Broker, name: str) -> dict[str, str]:
    """Return the variables by which a plugin makes the tests' process a component of a fleet."""
    component = Fleet(server, "tests.upstream.suite_app:app").component(name)
    del component["PATH"]  # the suite's own
    return {**component, "SUITE_RUNTIME": "true"}


def at_once(
    suite: Suite, alone: Callable[[], Outcomes], through: Callable[[], Outcomes]
) -> tuple[Outcomes, Outcomes]:
    """Run both sides of a suite at the same time, and return the outcomes of each."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = [pool.submit(alone), pool.submit(through)]
        try:
            return futures[0].result(), futures[1].result()
        except BaseException:
            suite.stop()
            raise


def settle(
    comparison: Comparison,
    both: Callable[[str, Collection[str]], tuple[Outcomes, Outcomes]],
    name: str,
    of: Collection[str],
) -> None:
    """Run those of some tests again by themselves, on both sides, that differ and are not listed."""
    for attempt in range(1, TRIES):
        if tests := [test for test in comparison.unmeant if test in of]:
            comparison.again(*both(f"{name}-again-{attempt}", tests))


def conclude(comparison: Comparison, suite: Suite, began: float, least: int) -> None:
    """Write the page, and fail for a difference that is not listed, or a listed one that is none."""
    minutes = (time.monotonic() - began) / 60
    text = comparison.text(f"The own tests of {suite.name} {version(suite.name)}", minutes)
    tell(suite.name, text)
    assert suite.time_left, f"The time was over before all tests had run.\n{text}"
    assert comparison.passed_alone() >= least, f"Too few tests ran.\n{text}"
    assert not [*comparison.unmeant, *comparison.gone, *comparison.unknown], text


def test_celery(plain: Plain, tmp_path: Path) -> None:
    """Celery's suite ends the same; what needs a worker in the tests' own process is run with one."""
    began = time.monotonic()
    suite = suite_of("celery", "tests.upstream.celery_plugin", CELERY_FILES)
    with secured(tmp_path / "secured", redis_queues=["celery"], redis_web_may_control=True) as server:
        stock, runtime = Side(STOCK, suite, plain), Side(RUNTIME, suite, server)

        def outside(name: str, tests: Collection[str] | None = None) -> tuple[Outcomes, Outcomes]:
            return at_once(suite, lambda: stock.outside(name, tests), lambda: runtime.outside(name, tests))

        def inside(name: str, tests: Collection[str]) -> tuple[Outcomes, Outcomes]:
            return at_once(suite, lambda: stock.inside(name, tests), lambda: runtime.inside(name, tests))

        with ExitStack() as stack:
            for side in (stock, runtime):
                stack.enter_context(side.worker())
            comparison = Comparison(groups("celery"), *outside("outside"))
            rest = CELERY_INSIDE.among(comparison.alone)
            settle(comparison, outside, "outside", of=set(comparison.alone) - set(rest))
        # What fails with Celery alone reads the worker's state, signals or log in its own process.
        failed = [test for test, outcome in comparison.alone.items() if outcome.result == FAILED]
        rest = list(dict.fromkeys(rest + failed))
        comparison.elsewhere(*inside("inside", rest))
        settle(comparison, inside, "inside", of=rest)
    conclude(comparison, suite, began, least=300)


def test_kombu(plain: Plain, tmp_path: Path) -> None:
    """The suite of kombu's Redis transport ends the same on the runtime's, as a node has it."""
    began = time.monotonic()
    suite = suite_of("kombu", "tests.upstream.kombu_plugin", KOMBU_FILES)

    def variables(server: Plain | Broker) -> Mapping[str, str]:
        return {"REDIS_HOST": HOST, "REDIS_6379_TCP": str(server.port)}

    with secured(tmp_path / "secured", **KOMBU_RIGHTS) as server:
        as_node = {
            **as_component(server, "worker"),
            **variables(server),
            "SUITE_BROKER": server.url("worker"),
            "SUITE_ADMIN": server.url("admin"),
        }

        def both(name: str, tests: Collection[str] | None = None) -> tuple[Outcomes, Outcomes]:
            for one in (plain, server):
                one.client("admin").flushall()
            return at_once(
                suite,
                lambda: suite.run(f"{STOCK}-{name}", variables(plain), tests),
                lambda: suite.run(f"{RUNTIME}-{name}", as_node, tests),
            )

        comparison = Comparison(groups("kombu"), *both("all"))
        settle(comparison, both, "all", of=comparison.alone)
    conclude(comparison, suite, began, least=100)
