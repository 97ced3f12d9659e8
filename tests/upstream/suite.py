"""Celery's and kombu's own integration tests, from the sdists of the pinned releases.

Each suite runs in a process of its own; here is how it is fetched, run and read.
Its files are in .cache/upstream.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "upstream"
LOCK = ROOT / "app" / "runtime" / "requirements.lock"
TEST_TIMEOUT = 120  # seconds for one test that says nothing else
SUITE_TIMEOUT = 45 * 60  # seconds for all tests of a run
# Markers of plugins that only rerun, order or select, and are left out: an outcome is that of one run.
MARKERS = ("flaky", "env", "order", "celery", "timeout", "masked_modules", "usepackage")


def fetch(package: str) -> Path:
    """Return the folder with the tests (`t/`) of a package's pinned release; fetch its sdist if need be.

    Only `t/` is unpacked: beside it, Python would import the sdist's package, not the one that is tested.
    """
    name = f"{package}-{version(package)}"
    folder = CACHE / name
    if not (folder / "t" / "integration").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        wanted = CACHE / f"{package}.txt"
        wanted.write_text(pin(package))
        command = ("-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps")
        options = ("--no-binary", package, "--require-hashes", "--requirement", wanted, "--dest", CACHE)
        subprocess.run([sys.executable, *command, *options], check=True)
        with tarfile.open(CACHE / f"{name}.tar.gz") as archive:
            tests = [member for member in archive if member.name.startswith(f"{name}/t/")]
            archive.extractall(CACHE, tests, filter="data")
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

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment in which the tests, and workers of their tasks, find all modules."""
        path = os.pathsep.join(map(str, (self.folder, ROOT)))
        return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "LC_ALL": "C.UTF-8", **variables}

    def run(
        self, run: str, variables: Mapping[str, str], only: Iterable[str] | None = None
    ) -> dict[str, str]:
        """Run the tests, or only some; return the outcome of each: passed, failed or skipped.

        Args:
            run: A name for its report and its log in the cache.
            variables: What the plugin reads in the environment.
            only: Which tests, as `test_canvas.py::test_chain::test_simple`; default: all.
        """
        report = CACHE / f"{self.name}-{run}.xml"
        report.unlink(missing_ok=True)
        selected = self.files if only is None else [f"t/integration/{test}" for test in only]
        markers = "\n".join(f"{name}: see its plugin" for name in MARKERS)
        # None of the sdist's own configuration, but for how both name their tests.
        settings = {"junit_family": "xunit1", "markers": markers, "python_classes": "test_*"}
        options = [f"--override-ini={name}={value}" for name, value in settings.items()]
        options += [f"--timeout={TEST_TIMEOUT}", "-p", self.plugin, "-p", "no:cacheprovider", "--tb=short"]
        with (CACHE / f"{self.name}-{run}.log").open("w") as log:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", "."),
                    *(f"--junitxml={report}", *options, *selected),
                ],
                cwd=self.folder,
                env=self.environment(**variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=SUITE_TIMEOUT,
                check=False,
            )
        assert report.exists(), Path(log.name).read_text()
        found = outcomes(report)
        missing = set(only or ()) - set(found)
        assert not missing, f"{missing} were not run: {log.name}"
        return found


def outcomes(report: Path) -> dict[str, str]:
    """Return the outcome of each test in pytest's JUnit report; an error around a test is a failure."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):  # noqa: S314 (pytest wrote it)
        # `t.integration.test_redis.test_RedisMessage`; the attribute `file` may be that of a base class
        module, *classes = case.attrib["classname"].removeprefix("t.integration.").split(".")
        test = "::".join([f"{module}.py", *classes, case.attrib["name"]])
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        # a test that fails, and then its tear-down, is there twice
        found[test] = "failed" if "failed" in (outcome, found.get(test)) else outcome
    return found
