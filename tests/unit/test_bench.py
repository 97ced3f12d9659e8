# SPDX-License-Identifier: MIT
"""The benchmark: what it starts, and what it makes of its figures."""

from __future__ import annotations

import doctest
import json
import os
import platform
import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.filter import celery_worker as filters

from bench import (
    ROOT,
    against,
    bars,
    drain,
    idle,
    latency,
    machine,
    memory,
    peers,
    plots,
    report,
    usage,
    variants,
)
from bench import __main__ as command
from bench.bars import Bar, Figure

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from bench.variants import Celery

FIGURE, BASE = Figure("throughput", "the fleet", "cpu"), Figure("throughput", "stock", "cpu")
MEDIANS = {"throughput": {"the fleet": {"cpu": 50.0}, "stock": {"cpu": 100.0}}}


class FakeRedis:
    """A server that says its version, which is all that the description of the machine asks for."""

    def info(self, section: str) -> dict[str, str]:
        """Return it."""
        return {"redis_version": "7.0.15"}


def plan(*words: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, command.Measure]:
    """Return what would be measured."""
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    return dict(command.plan(command.parse()))


@pytest.mark.parametrize("module", [machine, report])
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_a_node_gets_what_the_role_gives_it() -> None:
    options = filters.complete({"p": {"queues": ["q"]}})["p"]
    assert set(variants.QUIET) <= set(filters.arguments(options, "INFO", task_events=False))


@pytest.mark.parametrize(
    ("name", "pool", "concurrency", "nodes", "argument"),
    [
        ("cpu", "prefork", 4, 1, "--prefetch-multiplier=1"),
        ("io", "threads", 80, 1, "--prefetch-multiplier=1"),
        ("short", "prefork", 1, 4, "--prefetch-multiplier=4"),
        ("long", "prefork", 4, 1, "--disable-prefetch"),
    ],
)
def test_profiles(name: str, pool: str, concurrency: int, nodes: int, argument: str) -> None:
    commands = variants.profile(name, cpus=4).commands()
    assert len(commands) == nodes
    for number, words in enumerate(commands, start=1):
        expected = {f"--pool={pool}", f"--concurrency={concurrency}", f"--hostname=bench-{number}@localhost"}
        assert expected | {argument} <= set(words)


def test_there_is_no_other_profile() -> None:
    with pytest.raises(KeyError):
        variants.profile("fast")


def test_celery_alone_gets_celerys_own_arguments() -> None:
    (words,) = variants.DEFAULTS.commands()
    assert words[1] == "--app=bench.app"
    assert not any(word.startswith("--without") for word in words)


def test_another_kind_of_pool_is_another_variant() -> None:
    assert variants.RUNTIME.with_pool("prefork") is variants.RUNTIME
    threads = variants.RUNTIME.with_pool("threads")
    assert (threads.name, threads.pool) == ("the fleet, threads", "threads")


def test_each_variant_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for measure in plan("--no-peers", "--pool=prefork", "--pool=solo", monkeypatch=monkeypatch).values():
        names = [variant.name for variant in measure.variants]
        assert len(set(names)) == len(names)


def test_peers_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = plan("--no-peers", monkeypatch=monkeypatch)["throughput"].variants
    assert not [one for one in measured if isinstance(one, peers.Peer)]


def test_peers_that_are_not_there_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "VENVS", tmp_path)
    with pytest.raises(SystemExit):
        plan(monkeypatch=monkeypatch)
    assert re.search("not installed: dramatiq, .*lab/bootstrap bench.*--no-peers", capsys.readouterr().err)
    plan("--only=memory", monkeypatch=monkeypatch)


def test_what_tasks_cost_is_what_was_used_between_two_readings() -> None:
    first = drain.Reading(10, 900, main=1, children=2, redis=3, commands=100, requests=50)
    last = drain.Reading(14, 100, main=1.4, children=2.8, redis=3.04, commands=1700, requests=850)
    run = drain.Run.between("one", first, last)
    assert (run.tasks_per_second, run.commands, run.requests) == (200, 2, 1)
    assert [run.main, run.children, run.redis, run.cpu] == pytest.approx([500, 1000, 50, 1550])


def test_latency_is_told_in_milliseconds() -> None:
    found = latency.Latency.of("one", [number / 1000 for number in range(101)])
    assert [found.p50, found.p90, found.p99, found.longest] == pytest.approx([50, 90, 99, 100])


def test_connections_of_all_nodes_count_as_one_kind() -> None:
    clients = [
        {"name": "bench-1@localhost", "cmd": "ping"},
        {"name": "bench-20@localhost", "cmd": "ping"},
        {"name": "", "cmd": "blmove"},
    ]
    assert idle.by_name(clients) == {"<node>": 2, "(blmove)": 1}


def test_the_benchmarks_own_question_is_not_counted() -> None:
    first = {"total_commands_processed": 10, "cmdstat_info": {"calls": 1}}
    last = {
        "total_commands_processed": 14,
        "cmdstat_info": {"calls": 2},
        "cmdstat_ping": {"calls": 3},
    }
    assert idle.asked(first, last, "total_commands_processed") == 3
    assert idle.kinds(first, last) == {"ping": 3}


def test_a_process_finds_itself() -> None:
    found = {process.pid: process for process in usage.processes({os.getsid(0)})}
    assert found[os.getpid()].cpu > 0
    assert usage.memory(os.getpid()) > 1


@pytest.mark.parametrize(
    ("bar", "row"),
    [
        (Bar("less", FIGURE, 0.55, BASE), ["less", "0.5", "<= 0.55", "yes"]),
        (Bar("less", FIGURE, 0.45, BASE), ["less", "0.5", "<= 0.45", "NO"]),
        (Bar("more", BASE, 1.7, FIGURE, at_least=True), ["more", "2", ">= 1.7", "yes"]),
        (Bar("alone", FIGURE, 50), ["alone", "50", "<= 50", "yes"]),
        (Bar("other", Figure("idle", "x", "y"), 1, BASE), ["other", "-", "<= 1", "not measured"]),
        (Bar("base", FIGURE, 1, Figure("idle", "x", "y")), ["base", "-", "<= 1", "not measured"]),
    ],
)
def test_bars(bar: Bar, row: list[str]) -> None:
    assert bar.row(MEDIANS) == row


def test_a_bar_that_is_not_met_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name; one of a measure of an earlier session does not."""
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--only=memory", "--rounds=1"])
    monkeypatch.setattr(
        command, "servers", lambda: nullcontext({"plain": SimpleNamespace(client=lambda _: FakeRedis())})
    )
    idle_row = {"variant": "the fleet x 20", "sent": 9.0, "connections": 99.0}
    costs = {"the fleet": 300.0, variants.STOCK.name: 400.0}
    monkeypatch.setattr(
        report, "begin", lambda _, names: {"machine": {}, "runs": {"memory": [], "idle": [idle_row]}}
    )
    monkeypatch.setattr(report, "write", lambda _: "the tables\n")
    monkeypatch.setattr(memory, "run", lambda _, one: memory.Memory(one.name, costs[one.name], 1, 1))
    with pytest.raises(SystemExit, match=r"^memory of a node .* is 0.75, and must be <= 0.45$"):
        command.main()
    assert capsys.readouterr().out == "the tables\n"
    costs["the fleet"] = 100
    command.main()


def test_a_task_may_cost_little_more_than_at_a_commit() -> None:
    """What counts is the median of the rounds' ratios, of variants that both trees have."""
    before = {"RUNTIME": [100.0, 200.0, 100.0], "EVENTS": [100.0] * 3, "OLD": [1.0] * 3}
    now = {"RUNTIME": [104.0, 208.0, 300.0], "EVENTS": [106.0, 106.0, 10.0], "RUNTIME_TLS": [1.0] * 3}
    assert against.compared(before, now) == [
        ["RUNTIME", "100", "208", "1.040", "<= 1.05", "yes"],
        ["EVENTS", "100", "106", "1.060", "<= 1.05", "NO"],
    ]


def test_who_costs_more_than_at_a_commit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both trees are measured in each round, in turns; the other one is gone afterwards."""
    asked: list[Path] = []

    def measured(root: Path, tasks: int) -> list[dict[str, Any]]:
        """Let this tree be dearer."""
        assert (root / "bench" / "drain.py").is_file()
        asked.append(root)
        return [{"variant": "EVENTS", "cpu": 200.0 if root == ROOT else 100.0}]

    monkeypatch.setattr(against, "measured", measured)
    monkeypatch.setattr(sys, "argv", ["against", "HEAD", "--rounds=4"])
    with pytest.raises(SystemExit, match=r"^A task costs more than 1.05 of what it did at HEAD: EVENTS$"):
        against.main()
    assert [root == ROOT for root in asked] == [False, True, True, False] * 2
    assert not asked[0].exists()


def test_each_bar_is_about_something_that_is_measured() -> None:
    fleets: list[Celery] = [one for variant in variants.IDLE for one in idle.fleets(variant)]
    celery = (*variants.COMPARED, *variants.SECURED, *variants.COSTLY, *fleets)
    names = {one.name for one in celery} | {peer.name for peer in peers.PEERS}
    for bar in bars.BARS:
        for figure in filter(None, (bar.figure, bar.base)):
            columns = {column.name for column in report.TABLES[figure.measure][1]}
            assert figure.variant in names
            assert figure.column in columns


def test_the_description_names_no_host() -> None:
    described = machine.describe(FakeRedis())
    assert described["Redis"] == "7.0.15"
    assert set(described) >= {"CPU", "cores", "memory", "kernel", "Python", "Celery", "kombu", *machine.PEERS}
    assert not any(platform.node() in value for value in described.values())


def test_a_report_has_medians_in_tables_plots_and_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    row: dict[str, Any] = {"variant": "one", "total": 100.0, "main": 20.0, "child": 10.0}
    rows = [row, {**row, "total": 300.0}, {**row, "total": 200.0}, {**row, "variant": "two", "total": 50.0}]
    results = {"machine": {"CPU": "fast"}, "runs": {"memory": rows}}
    text = report.write(results)
    assert "Rounds: memory 3." in text
    assert "| one     | 200 |         1.00 |   20 |         10 |" in text
    assert "| two     |  50 |         0.25 |   20 |         10 |" in text
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert sorted(file.name for file in tmp_path.iterdir()) == ["memory.svg", "results.json", "results.md"]


def test_other_measures_of_the_same_machine_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    machine, other = {"CPU": "fast"}, {"CPU": "slow"}
    assert report.begin(machine, ["idle"]) == {"machine": machine, "runs": {"idle": []}}
    row = {"variant": "one", "total": 100.0, "main": 20.0, "child": 10.0}
    report.write({"machine": machine, "runs": {"memory": [row]}})
    assert report.begin(machine, ["idle"])["runs"] == {"memory": [row], "idle": []}
    assert report.begin(machine, ["memory"])["runs"] == {"memory": []}
    assert report.begin(other, ["idle"])["runs"] == {"idle": []}


def test_a_bar_that_is_much_longer_than_the_first_is_cut() -> None:
    found = {"one": {"total": 10.0}, "two": {"total": 1000.0}}
    rows = [{"variant": name, **figures} for name, figures in found.items()]
    (axes,) = plots.plot(found, rows, plots.PLOTS["memory"]).axes
    assert axes.get_xlim()[1] == pytest.approx(10 * plots.WIDEST * 1.2)
