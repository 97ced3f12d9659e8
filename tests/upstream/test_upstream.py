"""Celery's and kombu's own integration tests: through the runtime they end as with Celery alone.

`make upstream` runs them. The runtime has a Redis with TLS and the fleet's ACL, Celery alone a plain one.
What differs on purpose is in differences.toml, with the reasons; docs/compatibility.md tells users of it.
"""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app.tests.broker import HOST, Broker
from app.tests.commands import Daemon, Fleet
from bench.servers import Plain
from tests.upstream.suite import CACHE, Suite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
KOMBU_FILES = ("test_redis.py", "test_redis_brpop_qos.py")
DIFFERENCES = tomllib.loads(Path(__file__).with_name("differences.toml").read_text())
TRIES = 3  # of a test that differs, alone: a difference is what differs each time
CONCURRENCY = "4"
NODE = "suite@test"
STOCK, RUNTIME = "stock", "runtime"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    """Yield a Redis without TLS and users, for Celery alone."""
    program = Broker.program_path()
    server = Plain(program, tmp_path_factory.mktemp("plain"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Yield a Redis as the fleet has it, whose users may use Celery's default queue."""
    server = Broker(tmp_path_factory.mktemp("secured"), queues=["celery"], redis_web_may_control=True)
    yield server
    server.stop()


class Side:
    """One of the two that are compared: Celery alone, or Celery through the runtime."""

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
        if isinstance(self.server, Broker):
            # What the app itself names as broker does not matter: the runtime lays the environment's on it.
            environment = self.suite.environment(**self.variables)
            with Fleet(self.server, app, **environment).worker(NODE.split("@")[0], *words):
                yield
            return
        environment = self.suite.environment(**self.variables)
        stock = ["worker", f"--hostname={NODE}", "--loglevel=INFO", *words]
        with Daemon(stock, environment, ready=f"{NODE} ready.", entry=("-A", app)):
            yield

    def outside(self, run: str, only: Any = None) -> dict[str, str]:
        """Run the tests with the worker outside; the tests' process is an application that sends tasks."""
        return self.run(run, "web", {"SUITE_WORKER": "outside"}, only)

    def inside(self, run: str, only: Any = None) -> dict[str, str]:
        """Run the tests with the worker in a thread of their own process."""
        return self.run(run, "worker", {"SUITE_WORKER": "inside"}, only)

    def run(self, run: str, component: str, variables: Mapping[str, str], only: Any) -> dict[str, str]:
        """Run the tests in a process that is this component of a fleet, or has Celery alone."""
        variables = {**self.variables, **variables}
        if isinstance(self.server, Broker):
            url = self.server.url(component)
            variables |= Fleet(self.server, "tests.upstream.suite_app:app").component(component)
            variables |= {"TEST_BROKER": url, "TEST_BACKEND": url, "SUITE_RUNTIME": "true"}
            del variables["PATH"]  # the suite's own
        return self.suite.run(f"{self.name}-{run}", variables, only)


def at_once(*calls: Any) -> list[Any]:
    """Call functions at the same time, and return what each returns."""
    with ThreadPoolExecutor(max_workers=len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def worse(stock: Mapping[str, str], runtime: Mapping[str, str]) -> list[str]:
    """Return the tests that Celery alone passes, and the runtime does not."""
    return [test for test, outcome in stock.items() if outcome == "passed" != runtime.get(test)]


def assert_ran(stock: Mapping[str, str], runtime: Mapping[str, str], least: int) -> None:
    """Fail if Celery alone passed fewer tests than that, or the runtime ran other ones."""
    passed = sum(outcome == "passed" for outcome in stock.values())
    assert passed >= least, f"Celery alone passed {passed} tests only; the logs are in {CACHE}"
    assert set(stock) == set(runtime), set(stock) ^ set(runtime)


def settle(name: str, found: list[str], again: Any) -> list[str]:
    """Return which of the tests that differed do so each time that they are run alone.

    Args:
        name: Of the run.
        found: The tests.
        again: A function of a name and tests that runs them on both sides, and returns both outcomes.
    """
    for attempt in range(1, TRIES):
        if not found:
            break
        found = worse(*again(f"{name}-again-{attempt}", found))
    return found


def compare(differing: list[str], section: str) -> None:
    """Fail for a difference that is not listed, and for a listed one that is none."""
    listed = {test for group in DIFFERENCES[section] for test in group["tests"]}
    sometimes = {test for group in DIFFERENCES[section] if group.get("sometimes") for test in group["tests"]}
    new = sorted(set(differing) - listed)
    gone = sorted(listed - sometimes - set(differing))
    assert not new, f"Celery alone passes these, and the runtime does not: {new}. The logs are in {CACHE}."
    assert not gone, f"These no longer differ: take them out of differences.toml: {gone}"


def test_celery(plain: Plain, secured: Broker) -> None:
    """Celery's suite ends the same; what needs a worker in the tests' own process is run with one."""
    suite = Suite("celery", "tests.upstream.celery_plugin", CELERY_FILES)
    stock, runtime = Side(STOCK, suite, plain), Side(RUNTIME, suite, secured)

    def again(name: str, tests: list[str]) -> list[dict[str, str]]:
        return at_once(lambda: stock.outside(name, tests), lambda: runtime.outside(name, tests))

    with ExitStack() as stack:
        for side in (stock, runtime):
            stack.enter_context(side.worker())
        alone, through = at_once(lambda: stock.outside("outside"), lambda: runtime.outside("outside"))
        assert_ran(alone, through, least=300)
        differing = settle("outside", worse(alone, through), again)
    # These read the worker's state, signals or log in their own process.
    rest = [test for test, outcome in alone.items() if outcome == "failed"]
    alone_in, through_in = at_once(
        lambda: stock.inside("inside", rest), lambda: runtime.inside("inside", rest)
    )

    def again_inside(name: str, tests: list[str]) -> list[dict[str, str]]:
        return at_once(lambda: stock.inside(name, tests), lambda: runtime.inside(name, tests))

    differing += settle("inside", worse(alone_in, through_in), again_inside)
    compare(differing, "celery")


def test_kombu(plain: Plain) -> None:
    """The suite of kombu's Redis transport ends the same; its queues have random names, so no ACL fits."""
    suite = Suite("kombu", "tests.upstream.kombu_plugin", KOMBU_FILES)
    port = str(plain.port)
    where = {"REDIS_HOST": HOST, "REDIS_6379_TCP": port}
    alone = suite.run(STOCK, where)
    through = suite.run(RUNTIME, {**where, "SUITE_RUNTIME": "true", "FLEET_COMPONENT": "worker"})
    assert_ran(alone, through, least=100)

    def again(name: str, tests: list[str]) -> list[dict[str, str]]:
        return [
            suite.run(f"{STOCK}-{name}", where, tests),
            suite.run(
                f"{RUNTIME}-{name}", {**where, "SUITE_RUNTIME": "true", "FLEET_COMPONENT": "worker"}, tests
            ),
        ]

    compare(settle("again", worse(alone, through), again), "kombu")
