#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the project's tests, stage by stage, and counts them.

Usage: lab/test.py STAGE...; a stage is lint, unit, apps, oldest, versions, apps-long, wheel, sanity, servers,
upstream, installed, or a Molecule scenario. A failure is the end.

The tools do the work: pre-commit, pytest, Molecule. This runs two stages at a time, which nox does not, and
adds up their counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock

import yaml
from junitparser import JUnitXml

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache" / "test"
MATRIX = ROOT / ".cache" / "matrix"
LAB = ROOT / "lab" / "lab.py"

SEVERAL = ("--numprocesses=4", "--dist=loadfile")
# The tests of the runtime that run with its oldest versions in `make test`, relative to app/runtime.
# test_inflight.py fails with Celery 5.5 (docs/compatibility.md), and is in `make versions` only.
WITH_OLDEST = (
    "tests/test_surface.py",
    "tests/transport",
    "tests/test_transport.py",
    "tests/test_pool.py",
    "tests/test_recovery.py",
    "tests/test_level.py",
)
RESULTS = ("passed", "failed", "skipped")
counts: Counter[str] = Counter()
one_at_a_time = Lock()


def count(name: str, seconds: float, output: str = "", **results: int) -> None:
    """Count the results of a test or several, and print a line; if any failed, the output too."""
    told = ", ".join(f"{number} {result}" for result, number in results.items() if number)
    with one_at_a_time:
        if results.get("failed"):
            print(output.rstrip(), flush=True)
        print(f"{name:<28} {told:<32} {seconds:6.1f} s", flush=True)
        counts.update(results)


def run(
    *command: str | Path, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> tuple[bool, float, str]:
    """Run a command to its end.

    Args:
        command: The program and its arguments.
        environment: Its environment, by default that of this process.
        log: A file to which the output is appended while the command runs.

    Returns:
        Whether it exited with 0, the seconds that it took, and its output, standard error included.
    """
    start = time.monotonic()
    with log.open("a+", errors="replace") if log else TemporaryFile("w+", errors="replace") as file:
        begin = file.seek(0, os.SEEK_END)
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
        file.seek(begin)
        return done.returncode == 0, time.monotonic() - start, file.read()


def take_report(report: Path, succeeded: bool) -> dict[str, int]:
    """Read and remove the JUnit report of a pytest run.

    Args:
        report: The report's path. It may be missing.
        succeeded: Whether pytest exited with 0.

    Returns:
        The counts of tests by result. A run that failed, or ran no test, has at least one failure.
    """
    tests = failed = skipped = 0
    if report.exists():
        for suite in JUnitXml.fromfile(str(report)):
            tests += suite.tests
            failed += suite.failures + suite.errors
            skipped += suite.skipped
        report.unlink()
    passed = tests - failed - skipped
    return {"passed": passed, "failed": failed or int(not succeeded or not tests), "skipped": skipped}


def lint() -> None:
    """Run each linter of .pre-commit-config.yaml on all files, also those that are not committed yet.

    Each linter counts as a test. Two run at the same time.
    """
    listing = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    files = sorted(set(listing.splitlines()))
    os.environ["PRE_COMMIT_HOME"] = str(ROOT / ".cache" / "pre-commit")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    stages = config["default_stages"]
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    with ThreadPoolExecutor(max_workers=2) as pool:
        running = {
            pool.submit(
                run, "pre-commit", "run", hook["id"], "--hook-stage", "manual", "--files", *files
            ): hook["name"]
            for hook in hooks
            if "manual" in hook.get("stages", stages)
        }
        for done in as_completed(running):
            succeeded, seconds, output = done.result()
            count(running[done], seconds, output, passed=int(succeeded), failed=int(not succeeded))


def pytest(name: str, *arguments: str) -> None:
    """Run pytest, and count each of its tests."""
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    succeeded, seconds, output = run("pytest", "--quiet", f"--junitxml={report}", *arguments)
    count(name, seconds, output, **take_report(report, succeeded))


def molecule(scenario: str) -> None:
    """Run the steps of a Molecule scenario one after another, each as a command of its own.

    A step counts as one test, `verify` as each test of its pytest run. After a step that fails, only
    `destroy` runs. The output of all steps is in `.cache/test/<scenario>.log`.

    `molecule test` runs the same steps, but with one exit code for all, and its `--report` is for readers.

    Args:
        scenario: The name of a folder in molecule/.
    """
    env = f"test-{scenario}"
    shared = yaml.safe_load((ROOT / ".config" / "molecule" / "config.yml").read_text())
    config = yaml.safe_load((ROOT / "molecule" / scenario / "molecule.yml").read_text())
    steps = (shared["scenario"] | config.get("scenario", {}))["test_sequence"]
    plain = {"MOLECULE_COMMAND_BORDERS": "0", "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"}
    environment = os.environ | config["ansible"]["env"] | plain
    report = REPORTS / f"{scenario}.xml"
    report.unlink(missing_ok=True)
    if subprocess.run([LAB, "prepare", env], cwd=ROOT, env=environment, check=False).returncode:
        count(f"{scenario}: prepare", 0, failed=1)
        return

    failed = False
    log = REPORTS / f"{scenario}.log"
    log.unlink(missing_ok=True)
    for step in steps:
        if failed and step != "destroy":
            continue
        command = ("molecule", step.replace("_", "-"), "--scenario-name", scenario)
        succeeded, seconds, output = run(*command, environment=environment, log=log)
        results = {"passed": int(succeeded), "failed": int(not succeeded)}
        if step == "verify":
            results = take_report(report, succeeded)
            skipped = [line for line in output.splitlines() if line.startswith("SKIPPED")]
            print("".join(f"{line}\n" for line in skipped), end="", flush=True)  # with the reasons
        failed = failed or bool(results["failed"])
        count(f"{scenario}: {step}", seconds, output, **results)
    subprocess.run([LAB, "destroy", env], cwd=ROOT, env=environment, check=True)


# The stages that are no Molecule scenario, in turn; those of a turn run at the same time.
PLAIN: tuple[dict[str, Callable[[], None]], ...] = (
    {
        "lint": lint,
        "unit": lambda: pytest("unit", "--doctest-modules", "tests/unit", "tests/lint", "lab"),
    },
    # By themselves, for they count seconds; several files at once, for they wait most of their time.
    {"apps": lambda: pytest("apps", *SEVERAL, "app")},
    {"oldest": lambda: runtime("oldest", "oldest", *WITH_OLDEST)},
    {"versions": lambda: other_versions()},
    {"apps-long": lambda: pytest("apps-long", *SEVERAL, "-m", "long", "app")},
    {
        "wheel": lambda: pytest("wheel", "tests/wheel"),
        "sanity": lambda: pytest("sanity", "--timeout=4000", "tests/sanity"),
    },
    {"servers": lambda: other_servers()},
    {"upstream": lambda: pytest("upstream", "--timeout=4000", "tests/upstream")},
    {"installed": lambda: pytest("installed", "--timeout=3600", "tests/installed")},
)


def runtime(name: str, combination: str, *arguments: str) -> None:
    """Run tests of the runtime with a combination of versions of noxfile.py, and count them."""
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    session = ("nox", "--reuse-existing-virtualenvs", "--session", f"runtime({combination})")
    succeeded, seconds, output = run(*session, "--", f"--junitxml={report}", *arguments)
    count(name, seconds, output, **take_report(report, succeeded))


def other_versions() -> None:
    """Run the runtime's tests with a choice of the combinations of noxfile.py."""
    began = time.time()
    succeeded, seconds, output = run("nox", "--reuse-existing-virtualenvs", "--tags", "pairwise")
    reports = [one for one in MATRIX.glob("*.xml") if one.stat().st_mtime > began]
    for report in reports:
        results = take_report(report, succeeded=True)
        count(f"versions: {report.stem}", seconds / len(reports), output, **results)
    if not succeeded and not counts["failed"]:
        count("versions", seconds, output, failed=1)


def other_servers() -> None:
    """Run the tests in which the server matters with others than this machine's."""
    for name in ("redis", "valkey"):
        succeeded, _, output = run(ROOT / "lab" / "server", name)
        if not succeeded:
            count(f"servers: {name}", 0, output, failed=1)
            continue
        os.environ["TEST_REDIS_SERVER"] = output.splitlines()[-1]
        pytest(f"servers: {name}", *SEVERAL, "-m", "server and not long", "app")
    del os.environ["TEST_REDIS_SERVER"]


def run_stages(stages: Mapping[str, Callable[[], object]], note: str = "") -> None:
    """Run stages at the same time, at most two, unless one before them failed."""
    if stages and not counts["failed"]:
        print(f"==> {', '.join(stages)}{note}", flush=True)
        with ThreadPoolExecutor(max_workers=2) as pool:
            for done in [pool.submit(stage) for stage in stages.values()]:
                done.result()


def main() -> None:
    """Run the stages that were asked for: the plain ones in turn until one fails, and then the scenarios."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    began = time.time()
    asked = sys.argv[1:]
    known = {name for turn in PLAIN for name in turn}
    there = {path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")}
    if unknown := set(asked) - known - there:
        sys.exit(f"There is no stage {', '.join(sorted(unknown))}, only {', '.join(sorted(known | there))}.")
    for turn in PLAIN:
        run_stages({name: stage for name, stage in turn.items() if name in asked})
    scenarios = {name: partial(molecule, name) for name in asked if name not in known}
    run_stages(scenarios, ": two at a time, since each waits for hosts most of its time")
    for table in REPORTS.glob("*/*.md"):  # what the tests tell besides
        if table.stat().st_mtime > began:
            print(table.read_text(), end="")
    print(
        ", ".join(f"{counts[result]} {result}" for result in RESULTS if counts[result] or result != "skipped")
    )
    sys.exit(counts["failed"] > 0)


if __name__ == "__main__":
    main()
