# SPDX-License-Identifier: MIT
"""Celery's and kombu's own integration tests, from the sdists of the pinned releases.

Each run of a suite is a process of its own; here is how a suite is fetched, run and read.
Its files are in .cache/upstream.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from junitparser import JUnitXml, Skipped, TestCase

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "upstream"
LOCK = ROOT / "app" / "runtime" / "requirements.lock"
TEST_TIMEOUT = 300  # seconds for one test that says nothing else; one takes 140 in any case
SUITE_TIMEOUT = 50 * 60  # seconds for all runs of a suite together
LAST_WORDS = 60  # seconds for a run that was interrupted to write its report
PIP_OPTIONS = ("--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=20")
# Markers of plugins that only rerun, order or select, and are left out: an outcome is that of one run.
MARKERS = ("flaky", "env", "order", "celery", "timeout", "masked_modules", "usepackage")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class UnavailableError(Exception):
    """The sdist of a package is not here, and cannot be fetched."""


class Outcome(NamedTuple):
    """How a test ended: passed, failed or skipped, and if it failed, by what."""

    result: str
    why: str = ""


def fetch(package: str) -> Path:
    """Return the folder with the tests (`t/`) of a package's pinned release; fetch its sdist if need be.

    Only `t/` is unpacked: beside it, Python would import the sdist's package, not the one that is tested.

    Raises:
        UnavailableError: There is no index, or it does not have the sdist.
    """
    name = f"{package}-{version(package)}"
    folder = CACHE / name
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=CACHE) as directory:
        wanted = Path(directory, "requirements.txt")
        wanted.write_text(pin(package))
        command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--no-deps"]
        command += [
            "--no-binary",
            package,
            "--require-hashes",
            "--requirement",
            str(wanted),
            "--dest",
            directory,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(
                f"{name}'s tests are not in {CACHE.relative_to(ROOT)}, and pip cannot fetch its sdist. With "
                f"an index in reach, `make upstream` fetches it once.\n{done.stderr.strip().splitlines()[-1]}"
            )
        archive = Path(directory, f"{name}.tar.gz")
        subprocess.run(["tar", "-xf", archive, "-C", directory, f"{name}/t"], check=True)
        Path(directory, name).rename(folder)
    return folder


def pin(package: str) -> str:
    """Return the requirement of a package with its hashes, as the runtime's lock has it."""
    found = re.search(rf"^{package}==.*?(?=^\S)", LOCK.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{package} is not in {LOCK.name}"
    return "".join(line for line in found[0].splitlines(keepends=True) if "#" not in line).rstrip("\\\n ")


class Suite:
    """The integration tests of a package."""

    def __init__(self, package: str, plugin: str, files: Sequence[str]) -> None:
        """Fetch them; `plugin` is the module that takes them to a broker, and `files` are run."""
        self.folder = fetch(package)
        self.name = package
        self.plugin = plugin
        self.files = [f"t/integration/{file}" for file in files]
        self._ends = time.monotonic() + SUITE_TIMEOUT

    @property
    def time_left(self) -> float:
        """The seconds that are left for the runs; none when the time is over."""
        return max(0.0, self._ends - time.monotonic())

    def stop(self) -> None:
        """Interrupt what runs."""
        self._ends = 0.0

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment in which the tests, and workers of their tasks, find all modules."""
        path = os.pathsep.join(map(str, (self.folder, ROOT)))
        return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "LC_ALL": "C.UTF-8", **variables}

    def run(
        self, run: str, variables: Mapping[str, str], only: Collection[str] | None = None
    ) -> dict[str, Outcome]:
        """Run the tests, or only some; return the outcome of each.

        A run is interrupted when the suite's time is over; the tests that it did not come to have no outcome.

        Args:
            run: A name for its report and its log in the cache.
            variables: What the plugin reads in the environment.
            only: Which tests, as `test_canvas.py::test_chain::test_simple`; default: all.
        """
        report, log = (CACHE / f"{self.name}-{run}.{kind}" for kind in ("xml", "log"))
        report.unlink(missing_ok=True)
        selected = self.files if only is None else [f"t/integration/{test}" for test in only]
        markers = "\n".join(f"{name}: see its plugin" for name in MARKERS)
        # None of the sdist's own configuration, but for how both name their tests.
        settings = {"junit_family": "xunit1", "markers": markers, "python_classes": "test_*"}
        options = [f"--override-ini={name}={value}" for name, value in settings.items()]
        options += [f"--timeout={TEST_TIMEOUT}", "-p", self.plugin, "-p", "no:cacheprovider", "--tb=short"]
        with log.open("w") as output, TemporaryDirectory() as directory:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", "."),
                    *(f"--junitxml={report}", *options, *selected),
                ],
                cwd=self.folder,
                env=self.environment(TMPDIR=directory, **variables),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                while process.poll() is None and self.time_left:
                    time.sleep(0.2)
            finally:
                end(process)
        return outcomes(report) if report.exists() else {}


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt pytest if it runs still, so that it writes its report, and end what it has left behind."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def outcomes(report: Path) -> dict[str, Outcome]:
    """Return the outcome of each test in pytest's JUnit report; an error around a test is a failure."""
    found: dict[str, Outcome] = {}
    for case in chain.from_iterable(JUnitXml.fromfile(str(report))):
        # `t.integration.test_redis.test_RedisMessage`; the attribute `file` may be that of a base class
        module, *classes = case.classname.removeprefix("t.integration.").split(".")
        test = "::".join([f"{module}.py", *classes, case.name])
        outcome = of_case(case)
        # a test that fails, and then its tear-down, is there twice
        found[test] = found[test] if test in found and found[test].result == FAILED else outcome
    return found


def of_case(case: TestCase) -> Outcome:
    """Return the outcome of one test in a report."""
    if case.is_failure or case.is_error:
        lines = next(
            result.message or "" for result in case.result if not isinstance(result, Skipped)
        ).splitlines()
        return Outcome(FAILED, lines[0] if lines else "")
    return Outcome(SKIPPED if case.is_skipped else PASSED)
