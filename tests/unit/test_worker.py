# SPDX-License-Identifier: MIT
"""The role celery_worker: which pools it refuses, and what it writes for those that it takes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.fleet.celery.plugins.filter import celery_worker as filters
from celery.bin.worker import worker as celery_worker_command

from tests.unit.rendering import PROJECT, Role, trusted

URL = "rediss://worker:p%25w@broker:6379/0?ssl_cert_reqs=required"
# What an operator who uses every option of every type of pool would write.
POOLS: dict[str, dict[str, Any]] = {
    "default": {
        "queues": ["default", "email"],
        "profile": "short",
        "pool": "prefork",
        "nodes": 2,
        "concurrency": 2,
        "prefetch_multiplier": 2,
        "disable_prefetch": False,
        "time_limit": 600,
        "soft_time_limit": 500,
        "max_tasks_per_child": 1000,
        "max_memory_per_child": 200000,
        "memory_max": "1G",
        "cpu_quota": "150%",
        "tasks_max": 64,
        "allowed_cpus": "0-1,3",
        "tmp_max": "2G",
        "tmp_on_disk": False,
        "umask": "0022",
        "groups": ["www-data", "video"],
        "devices": ["/dev/nvidia0"],
        "environment": {"OMP_NUM_THREADS": 1, "GREETING": 'say "hello"'},
        "extra_arguments": ["--disable-prefetch", "-Ofair"],
    },
    "elastic": {"queues": ["elastic"], "autoscale": {"min": 1, "max": 3}},
    "io": {"queues": ["io"], "pool": "threads", "concurrency": 16, "task_events": False},
    "one": {"queues": ["one"], "pool": "solo", "disable_prefetch": True},
}


def role(pools: dict[str, Any] | None = None, **variables: Any) -> Role:
    """Return the role as a playbook would run it."""
    return Role(
        "celery_worker",
        celery_worker_app_name="demo",
        celery_worker_broker_url=URL,
        celery_worker_pools=POOLS if pools is None else pools,
        **{"ansible_facts": {"processor_vcpus": 4, "memtotal_mb": 4096}, **variables},
    )


def node_files(**variables: Any) -> dict[str, str]:
    """Return the content of each file that shapes one node, by path."""
    files = role(**variables).evaluate("__celery_worker_node_files")
    return {file["path"]: file["content"] for file in files}


def environment(text: str) -> dict[str, str]:
    """Return the variables of an environment file; values like these the shell reads alike."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: shlex.split(value)[0] for name, _, value in (line.partition("=") for line in lines)}


def problems(pools: dict[str, Any], cpus: int = 4, memory_mb: int = 4096, host: str = "host1") -> str:
    """Return what the role says about pools, in one text."""
    spec = role().path / "meta" / "pool.yml"
    return "\n".join(filters.problems(pools, str(spec), host, cpus, memory_mb))


def shaped(profile: str, cpus: int, memory_mb: int, **options: Any) -> dict[str, Any]:
    """Return the options of a pool with a profile, on a host, without those that say nothing of it."""
    given = {"queues": ["q"], "profile": profile, "time_limit": 60, **options}
    pool = filters.complete({"p": given}, cpus, memory_mb)["p"]
    named = ("nodes", "pool", "concurrency", "prefetch_multiplier", "disable_prefetch")
    return {name: pool[name] for name in named if name in pool}


def one(**options: Any) -> dict[str, Any]:
    """Return pools that consist of one."""
    return {"p": {"queues": ["q"], **options}}


SMALL, MIDDLE, LARGE = (1, 1024), (2, 2048), (16, 65536)  # CPUs, MiB


@pytest.mark.parametrize("host", [SMALL, MIDDLE, LARGE])
@pytest.mark.parametrize("profile", ["cpu", "long"])
def test_tasks_that_compute_get_a_child_a_cpu(profile: str, host: tuple[int, int]) -> None:
    """In one node, and nothing waits behind a task that runs."""
    assert shaped(profile, *host) == {
        "nodes": 1, "pool": "prefork", "concurrency": host[0],
        "prefetch_multiplier": 1, "disable_prefetch": True,
    }  # fmt: skip


@pytest.mark.parametrize(("host", "threads"), [(SMALL, 20), (MIDDLE, 40), (LARGE, 100)])
def test_tasks_that_wait_get_threads(host: tuple[int, int], threads: int) -> None:
    """As many as one process can feed."""
    assert shaped("io", *host) == {
        "nodes": 1, "pool": "threads", "concurrency": threads,
        "prefetch_multiplier": 1, "disable_prefetch": False,
    }  # fmt: skip


@pytest.mark.parametrize("host", [SMALL, MIDDLE, LARGE])
def test_short_tasks_get_a_node_a_cpu(host: tuple[int, int]) -> None:
    """A node's main process is what bounds them."""
    assert shaped("short", *host) == {
        "nodes": host[0], "pool": "prefork", "concurrency": 1,
        "prefetch_multiplier": 4, "disable_prefetch": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "options", "expected"),
    [
        ("cpu", {"concurrency": 3}, {"concurrency": 3}),
        ("cpu", {"nodes": 4}, {"nodes": 4, "concurrency": 4}),
        ("cpu", {"nodes": 0}, {"nodes": 0, "concurrency": 16}),
        ("cpu", {"allowed_cpus": "0-3,6"}, {"concurrency": 5}),
        ("cpu", {"autoscale": {"min": 1, "max": 4}}, {"concurrency": None}),
        ("cpu", {"prefetch_multiplier": 4}, {"prefetch_multiplier": 4, "disable_prefetch": False}),
        ("cpu", {"disable_prefetch": False}, {"prefetch_multiplier": 1, "disable_prefetch": False}),
        ("io", {"pool": "gevent"}, {"pool": "gevent", "concurrency": 100}),
        ("io", {"nodes": 4}, {"nodes": 4, "concurrency": 80}),
        ("short", {"nodes": 2}, {"nodes": 2, "concurrency": 1}),
        ("short", {"pool": "solo"}, {"nodes": 16, "pool": "solo", "concurrency": None}),
        ("short", {"allowed_cpus": "0-3"}, {"nodes": 4}),
        ("short", {"disable_prefetch": True}, {"prefetch_multiplier": 1, "disable_prefetch": True}),
        ("long", {"time_limit": 7200}, {"concurrency": 16}),
    ],
)
def test_what_a_pool_sets_comes_before_its_profile(
    profile: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    """And what the profile would set beside it goes, where both could not be."""
    found = shaped(profile, *LARGE, **options)
    assert {name: found.get(name) for name in expected} == expected
    assert problems(one(profile=profile, time_limit=options.pop("time_limit", 60), **options), *LARGE) == ""


@pytest.mark.parametrize(
    ("profile", "options", "expected"),
    [
        ("cpu", {"max_memory_per_child": 2_000_000}, {"concurrency": 6}),
        ("long", {"max_memory_per_child": 2_000_000, "nodes": 2}, {"concurrency": 3}),
        ("cpu", {"max_memory_per_child": 200_000, "memory_max": "1G"}, {"concurrency": 5}),
        ("cpu", {"max_memory_per_child": 99_000_000}, {"concurrency": 1}),
        ("short", {"memory_max": "2G"}, {"nodes": 6}),
        ("short", {"max_memory_per_child": 1_000_000}, {"nodes": 12}),
    ],
)
def test_a_profile_leaves_a_quarter_of_the_memory(
    profile: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    """By what the pool says of its children; one always runs."""
    found = shaped(profile, 16, 16384, **options)
    assert {name: found[name] for name in expected} == expected
    assert problems(one(profile=profile, time_limit=60, **options), 16, 16384) == ""


def test_small_memory_makes_fewer_nodes() -> None:
    """A node of one child takes 57 MiB before it does anything."""
    assert shaped("short", 16, 512)["nodes"] == 6


def test_two_profiles_take_all_cpus_each() -> None:
    """Which of them is to have less, only the operator knows."""
    pools = {name: {"queues": ["q"], "profile": "cpu"} for name in ("a", "b")}
    assert [pool["concurrency"] for pool in filters.complete(pools, 8, 8192).values()] == [8, 8]


def test_a_profile_needs_the_size_of_the_host() -> None:
    """Nodes that a host should run would else be taken for surplus, and removed."""
    with pytest.raises(ValueError, match="profile: short needs the host's CPUs"):
        filters.complete(one(profile="short"))
    filters.complete(one())


def test_a_profile_reaches_the_nodes_of_its_host() -> None:
    """By the facts of the host."""
    rendered = role(one(profile="short"), ansible_facts={"processor_vcpus": 3, "memtotal_mb": 4096})
    assert [node["name"] for node in rendered.evaluate("__celery_worker_nodes")] == ["p-1", "p-2", "p-3"]
    assert role(one(), ansible_facts={}).evaluate("__celery_worker_nodes")[0]["name"] == "p-1"


def test_other_hosts_know_its_nodes_too() -> None:
    """Flower waits for them; of a host whose facts are not there, for the one that is certain."""
    host: dict[str, Any] = {
        "celery_worker_pools": {**one(profile="short"), "o": {"queues": ["o"]}},
        "celery_worker_result": {"drained": False},
        "celery_worker_host_name": "other",
    }
    facts = {"processor_vcpus": 2, "memtotal_mb": 2048}
    hosts = {"a": {**host, "ansible_facts": facts}, "b": {**host, "ansible_facts": {}}, "c": {}}
    names = filters.expected_nodes(hosts, ["a", "b"])
    assert names == ["o-1@other", "p-1@other", "p-2@other", "o-1@other", "p-1@other"]


def test_what_the_inventory_wants_is_told_as_far_as_it_is_known() -> None:
    """Nodes of a profile follow from facts; a queue is idle if no pool with a node has it."""
    pools = {
        "a": {"queues": ["a", "b"], "nodes": 2},
        "off": {"queues": ["b", "c"], "nodes": 0},
    }
    hosts: dict[str, dict[str, Any]] = {
        "w1": {"celery_worker_pools": pools, "celery_worker_host_name": "one"},
        "w2": {"celery_worker_pools": one(profile="short"), "ansible_facts": {"processor_vcpus": 2}},
        "w3": {"celery_worker_pools": one(profile="short")},
    }
    assert filters.wanted(hosts, hosts) == {
        "nodes": {"a-1@one": ["a", "b"], "a-2@one": ["a", "b"], "p-1@w2": ["q"], "p-2@w2": ["q"]},
        "unknown": ["w3"],
        "idle_queues": ["c"],
    }


def test_hosts_that_a_run_has_not_looked_at_may_be_drained() -> None:
    """So nobody waits for their nodes: they may be left out with -l because they are off."""
    results: dict[str, dict[str, Any]] = {
        "w1": {"celery_worker_result": {"drained": False}},
        "w2": {"celery_worker_result": {"drained": True}},
        "w3": {},
    }
    pools = {"celery_worker_pools": {"a": {"queues": ["x"]}}}
    hosts = {host: {**pools, **result} for host, result in results.items()}
    assert filters.expected_nodes(hosts, hosts) == ["a-1@w1"]


def test_every_node_has_its_files() -> None:
    """Two files a node, named after it."""
    names = ["default-1", "default-2", "elastic-1", "io-1", "one-1"]
    assert list(node_files()) == [
        path
        for name in names
        for path in (
            f"/etc/celery/nodes/{name}.env",
            f"/etc/systemd/system/celery-worker@{name}.service.d/limits.conf",
        )
    ]


def test_the_options_of_a_pool_reach_its_nodes() -> None:
    """Each as an option of `celery worker`, a limit of the unit or a variable; none is lost."""
    files = node_files(celery_worker_log_level="WARNING", celery_worker_task_events=True)
    variables = environment(files["/etc/celery/nodes/default-2.env"])
    assert variables["FLEET_NODE"] == "default-2@host1"
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["GREETING"] == 'say "hello"'
    assert variables["FLEET_NODE_ARGUMENTS"].split() == [
        "--queues=default,email", "--pool=prefork", "--loglevel=WARNING",
        "--concurrency=2", "--prefetch-multiplier=2", "--time-limit=600", "--soft-time-limit=500",
        "--max-tasks-per-child=1000", "--max-memory-per-child=200000",
        "--task-events", "--without-gossip", "--without-mingle", "--heartbeat-interval=10",
        "--disable-prefetch", "-Ofair",
    ]  # fmt: skip
    limits = files["/etc/systemd/system/celery-worker@default-2.service.d/limits.conf"]
    settings = [line for line in limits.splitlines() if line and not line.startswith("#")]
    assert settings == [
        "[Service]", "TimeoutStopSec=630", "User=celery-default",
        "MemoryMax=1G", "MemorySwapMax=0", "TasksMax=64", "CPUQuota=150%", "AllowedCPUs=0-1,3", "UMask=0022",
        "PrivateTmp=no", "TemporaryFileSystem=/dev/shm:mode=1777,size=2G",
        "TemporaryFileSystem=/tmp:mode=1777,size=2G", "TemporaryFileSystem=/var/tmp:mode=1777,size=2G",
        "BindPaths=/dev/nvidia0", "DeviceAllow=/dev/nvidia0 rw", "SupplementaryGroups=www-data video",
    ]  # fmt: skip


@pytest.mark.parametrize("monitored", [True, False])
def test_nodes_send_events_where_something_shows_them(monitored: bool) -> None:
    """Unless the variable or the pool says otherwise; a pool is heard whatever the whole fleet sends."""

    def sent(**variables: Any) -> dict[str, bool]:
        files = node_files(celery_worker_is_monitored=monitored, **variables)
        nodes = {name: environment(files[f"/etc/celery/nodes/{name}.env"]) for name in ("one-1", "io-1")}
        return {
            name: "--task-events" in of["FLEET_NODE_ARGUMENTS"].split()
            and of.get("FLEET_TASK_EVENTS") != "false"
            for name, of in nodes.items()
        }

    assert sent() == {"one-1": monitored, "io-1": False}
    assert sent(celery_worker_task_events=not monitored) == {"one-1": not monitored, "io-1": False}
    io = environment(node_files()["/etc/celery/nodes/io-1.env"])
    assert io["FLEET_TASK_EVENTS"] == "false"  # whatever FLEET_TASK_EVENTS in app.env says


@pytest.mark.parametrize(
    ("name", "given", "not_given"),
    [
        ("elastic-1", ["--autoscale=3,1", "--soft-time-limit=3420"], ["--concurrency", "--disable-prefetch"]),
        ("io-1", ["--pool=threads", "--concurrency=16"], ["--soft-time-limit", "--task-events"]),
        (
            "one-1",
            ["--pool=solo", "--time-limit=3600", "--disable-prefetch"],
            ["--soft-time-limit", "--concurrency"],
        ),
    ],
)
def test_a_pool_gets_what_its_type_can_do(name: str, given: list[str], not_given: list[str]) -> None:
    """And no option that Celery would ignore."""
    words = environment(node_files()[f"/etc/celery/nodes/{name}.env"])["FLEET_NODE_ARGUMENTS"]
    assert all(word in words.split() for word in given)
    assert not any(word in words for word in not_given)


def limits_of(options: dict[str, Any], cpus: int = 4) -> list[str]:
    """Return what bounds a node of a pool with some options."""
    return filters.limits(filters.complete(one(**options), cpus)["p"], cpus)


def test_a_node_is_bounded_where_its_pool_says_nothing() -> None:
    """By shares of its host: half of what it may take, for files in memory."""
    assert limits_of({"concurrency": 2}) == [
        "MemoryMax=80%", "TasksMax=416", "PrivateTmp=no",
        "TemporaryFileSystem=/dev/shm:mode=1777,size=40%",
        "TemporaryFileSystem=/tmp:mode=1777,size=40%",
        "TemporaryFileSystem=/var/tmp:mode=1777,size=40%",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ({}, 576),
        ({"concurrency": 1}, 336),
        ({"autoscale": {"min": 1, "max": 10}}, 1056),
        ({"pool": "solo"}, 336),
        ({"pool": "threads", "concurrency": 20}, 1856),
        ({"tasks_max": 50}, 50),
    ],
)
def test_processes_and_threads_have_a_bound(options: dict[str, Any], tasks: int) -> None:
    """That follows from the tasks at once, and from the CPUs, by which libraries start threads."""
    assert f"TasksMax={tasks}" in limits_of(options)


def test_memory_of_a_pool_bounds_its_files_in_memory_and_its_swap() -> None:
    """What a limit keeps from memory is not to fill the swap."""
    found = limits_of({"memory_max": "1G"})
    assert {"MemoryMax=1G", "MemorySwapMax=0", "TemporaryFileSystem=/tmp:mode=1777,size=536870912"} <= {
        *found
    }


def test_nodes_take_no_swap_unless_the_inventory_says_so() -> None:
    """What their bound keeps from memory would fill it."""
    assert "\nMemorySwapMax=0\n" in role().template("celery.slice.j2")
    assert "\nTasksMax=80%\n" in role().template("celery.slice.j2")
    assert "\nTasksMax=5000\n" in role(celery_worker_tasks_max="5000").template("celery.slice.j2")
    assert "\nMemorySwapMax=1G\n" in role(celery_worker_swap_max="1G").template("celery.slice.j2")


def test_tmp_may_be_on_disk() -> None:
    """Private as ever, and named by TMPDIR, for on Debian 13 /tmp itself is memory."""
    found = limits_of({"tmp_on_disk": True})
    assert "Environment=TMPDIR=/var/tmp" in found
    assert [line for line in found if "mp" in line.partition("=")[2]] == ["Environment=TMPDIR=/var/tmp"]
    assert "PrivateTmp=no" not in found


def test_addresses_are_all_or_those_that_are_named() -> None:
    """For all nodes of a host."""
    limits = node_files(celery_worker_ip_allow=["192.0.2.1"])
    both = ("IPAddressDeny=any\n", "IPAddressAllow=192.0.2.1\n")
    assert all(line in text for path, text in limits.items() if "limits" in path for line in both)
    assert "IPAddress" not in "".join(node_files().values())


def test_every_pool_has_a_user() -> None:
    """Its own, with a valid name of at most 31 characters, and not that of another component."""
    long = ["thumbnails_of_uploaded_pictures", "thumbnails_of_uploaded_pictured", "a" * 24, "a" * 25]
    names = [*long, "beat", "flower", "default", "beat_f9eeb63b"]
    found = [filters.user(name) for name in names]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"celery-[a-z0-9_-]{1,24}", user) for user in found)
    assert not {"celery-beat", "celery-flower"} & set(found)
    assert filters.user("default") == "celery-default"
    assert role().evaluate("__celery_worker_users") == [f"celery-{pool}" for pool in sorted(POOLS)]


def test_a_unit_without_its_drop_in_does_not_run_as_root() -> None:
    """It does not start: there is no user of that name."""
    assert "User=celery-%i\n" in role().template("celery-worker@.service.j2")


def test_what_tasks_reach_is_asked_of_the_host() -> None:
    """Groups and devices of its pools, and the paths, to which one of the users has to be able to write."""
    pools = {
        "a": {"queues": ["a"], "groups": ["www-data"], "devices": ["/dev/bug"]},
        "b": {"queues": ["b"]},
    }
    assert role(pools, celery_worker_writable_paths=["/srv/x"]).evaluate("__celery_worker_access") == [
        "group:www-data", "device:/dev/bug", "user:celery-a:,www-data", "user:celery-b:", "path:/srv/x",
    ]  # fmt: skip
    assert role(one()).evaluate("__celery_worker_access") == []


def test_what_a_host_does_not_have_is_said(tmp_path: Path) -> None:
    """With what to do; a path that may be missing is not looked for."""
    none = f"{tmp_path}/none"
    words = [
        f"path:{tmp_path}/none",
        f"path:-{tmp_path}/none",
        "group:no-such-group",
        "device:/dev/no-such",
        "group:root",
    ]
    program = PROJECT / "roles" / "celery_worker" / "files" / "find-unreached"
    done = subprocess.run([program, "celery", *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"celery_worker_writable_paths: {none} does not exist. Make it: install -d -g celery -m 2770 {none}",
        "groups: the host has no group no-such-group.",
        "devices: the host has no device /dev/no-such.",
    ]


def test_celery_knows_every_option() -> None:
    """An option that this version of Celery does not have would stop every node."""
    parser = celery_worker_command.make_parser(celery_worker_command.context_class(celery_worker_command))
    for path, text in node_files(celery_worker_task_events=True).items():
        if path.endswith(".env"):
            parser.parse_args(environment(text)["FLEET_NODE_ARGUMENTS"].split())


def test_the_specification_knows_every_option_and_default() -> None:
    """meta/pool.yml describes what the filters do."""
    options = role().read("meta/pool.yml")["options"]
    used = {option for pool in POOLS.values() for option in pool}
    assert set(options) == used
    described = {name: option["default"] for name, option in options.items() if "default" in option}
    nodes = filters.nodes(filters.complete({"p": {"queues": ["q"]}}), "h")
    assert described == {
        k: v for k, v in nodes[0]["options"].items() if k not in {"queues", "soft_time_limit"}
    }


def test_pools_that_can_run_are_taken() -> None:
    """Those of the test itself, of an empty host, and of a pool without nodes."""
    assert problems(POOLS) == ""
    assert problems({}) == ""
    assert problems(one(nodes=0, memory_max="64G")) == ""


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ({"p": ["q"]}, "Pool 'p': it must be a dictionary of options"),
        (one(concurency=2), "concurency. Supported parameters include: allowed_cpus"),
        ({"p": {"nodes": 1}}, "missing required arguments: queues"),
        (one(pool="eventlet"), "value of pool must be one of: prefork, threads, gevent, solo, got: eventlet"),
        (one(nodes="two"), "argument 'nodes' is of type str"),
        (one(concurrency="4"), "concurrency is the text '4', and must be a number"),
        (one(disable_prefetch="no"), "disable_prefetch is the text 'no', and must be true or false"),
        (one(profile="fast"), "value of profile must be one of: cpu, io, short, long, got: fast"),
        (one(profile="long"), "profile: long needs time_limit, the seconds that its longest task may take"),
        (
            one(prefetch_multiplier=2, disable_prefetch=True),
            "prefetch_multiplier is 2, of no effect with disable_prefetch",
        ),
        (one(profile="io", autoscale={"min": 1, "max": 2}), "autoscale has no effect with pool: threads"),
        (one(profile="cpu", soft_time_limit=3600), "soft_time_limit must be less than time_limit"),
        (one(autoscale={"min": 1}), "missing required arguments: max found in autoscale"),
        ({"Big": {"queues": ["q"]}}, "Pool 'Big': the name must be lower case"),
        ({"two-words": {"queues": ["q"]}}, "the name must be lower case"),
        (one(queues=[]), "queues is empty"),
        (one(umask="0999"), "umask is '0999', and must be an octal number in quotes"),
        (one(tmp_max="half"), "tmp_max is 'half', and must be a number with K, M, G or T"),
        (one(devices=["nvidia0"]), "'nvidia0' in devices must be the path of a device"),
        (one(devices=["/dev/../etc"]), "'/dev/../etc' in devices must be the path of a device"),
        (one(groups=["www data"]), "'www data' in groups must be the name of a group"),
        (
            one(tmp_on_disk=True, environment={"TMPDIR": "/x"}),
            "tmp_on_disk sets TMPDIR, and so does environment",
        ),
        (one(queues=["a,b"]), "the queue 'a,b' must be"),
        (one(queues=["a*"]), "the queue 'a*' must be"),
        (one(queues=["a", "a"]), "a queue is named twice"),
        (one(pool="threads"), "pool: threads needs concurrency"),
        (one(pool="gevent"), "pool: gevent needs concurrency"),
        (one(pool="solo", concurrency=2), "concurrency must be 1 or not set"),
        (one(concurrency=0), "concurrency is 0"),
        (one(concurrency=2, autoscale={"min": 1, "max": 2}), "set concurrency or autoscale, not both"),
        (one(autoscale={"min": 3, "max": 2}), "autoscale needs 1 <= min <= max"),
        (one(pool="threads", autoscale={"min": 1, "max": 2}), "only with gevent and prefork"),
        (
            one(pool="threads", concurrency=2, soft_time_limit=9),
            "soft_time_limit has no effect with pool: threads",
        ),
        (one(pool="solo", max_tasks_per_child=9), "max_tasks_per_child has no effect with pool: solo"),
        (one(pool="gevent", concurrency=2, max_memory_per_child=9), "only with prefork"),
        (one(time_limit=60, soft_time_limit=60), "soft_time_limit must be less than time_limit, which is 60"),
        (one(time_limit=0), "time_limit is 0"),
        (one(memory_max="1GB"), "memory_max is '1GB', and must be"),
        (one(cpu_quota="1.5"), "cpu_quota is '1.5', and must be"),
        (one(allowed_cpus="all"), "allowed_cpus is 'all', and must be"),
        (one(allowed_cpus="2-4"), "the host has the CPUs 0 to 3 only"),
        (one(environment={"FLEET_APP": "x"}), "environment may not set FLEET_APP"),
        (one(environment={"CELERY_BROKER_URL": "x"}), "environment may not set CELERY_BROKER_URL"),
        (one(environment={"A": "x\ny"}), "the value of A in environment must be one line"),
        (one(environment={"A": ["x"]}), "the value of A in environment must be one line"),
        (one(extra_arguments=["--pidfile=/tmp/x"]), "may not contain '--pidfile=/tmp/x'"),
        (one(extra_arguments=["-c8"]), "may not contain '-c8'"),
        (one(extra_arguments=["--optimization fair"]), "must be one word"),
        (
            one(concurrency=4, max_memory_per_child=300000, memory_max="1G"),
            "4 children that may each grow to 300000",
        ),
        (one(autoscale={"min": 1, "max": 4}, max_memory_per_child=300000, memory_max="1G"), "4 children"),
        (one(nodes=-1), "nodes is -1, and must be 0 or more"),
        (one(nodes=3, memory_max="2G"), "All memory_max together are 6144 MiB; the host has 4096 MiB"),
        (one(nodes=4, concurrency=64), "The nodes would run 256 child processes"),
    ],
)
def test_pools_that_cannot_run_are_refused(pools: dict[str, Any], message: str) -> None:
    """With a sentence that says what is wrong."""
    assert message in problems(pools)


@pytest.mark.parametrize(
    "pools",
    [
        one(),
        one(memory_max="1G", max_memory_per_child=500000),
        one(allowed_cpus="4-7"),
        one(nodes=99, concurrency=999, memory_max="64G"),
        *(one(profile=profile, time_limit=60, memory_max="64G") for profile in filters.PROFILES),
        {name: {"queues": ["q"], "profile": "short"} for name in ("a", "b")},
    ],
)
def test_what_depends_on_the_host_is_left_to_it(pools: dict[str, Any]) -> None:
    """The controller, which does not know the host's size, refuses what no host could run."""
    spec = str(role().path / "meta" / "pool.yml")
    assert filters.problems(pools, spec, "host1", None, None) == []
    assert filters.problems(one(profile="long"), spec, "host1", None, None) != []


def test_a_host_name_that_is_none_is_refused() -> None:
    """It is part of each node's name, and Celery expands % in it."""
    assert "celery_worker_host_name is 'host %h'" in problems(one(), host="host %h")


def test_a_long_option_that_only_looks_like_one_of_the_roles_is_taken() -> None:
    """`--pool-start-method` is not `--pool`."""
    assert problems(one(extra_arguments=["--pool-start-method=spawn"])) == ""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Write the role's units as on a host, but with programs that exist here."""
    rendered = role()
    unit = rendered.template("celery-worker@.service.j2")
    (tmp_path / "celery-worker@.service").write_text(
        unit.replace("/opt/celery/demo/current/bin/celery", "/bin/true")
        .replace("/usr/local/sbin/fleet-celery-start", "/bin/true")
        .replace("=celery\n", "=root\n")
    )
    (tmp_path / "celery.target").write_text(rendered.template("celery.target.j2"))
    for name in ("celery-watchdog.timer", "celery-watchdog.service"):
        text = rendered.template(f"{name}.j2").replace("/usr/local/sbin/fleet-celery-watchdog", "/bin/true")
        (tmp_path / name).write_text(text)
    drop_in = tmp_path / "celery-worker@default-1.service.d"
    drop_in.mkdir()
    limits = node_files()["/etc/systemd/system/celery-worker@default-1.service.d/limits.conf"]
    (drop_in / "limits.conf").write_text(limits.replace("celery-default", "root"))
    return tmp_path


def test_systemd_takes_the_units(units: Path) -> None:
    """`systemd-analyze verify` finds no unknown or misplaced setting."""
    units_of = (
        "celery-worker@default-1.service",
        "celery.target",
        "celery-watchdog.timer",
        "celery-watchdog.service",
    )
    names = [str(units / name) for name in units_of]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names],
        capture_output=True, text=True, check=False, env={"SYSTEMD_UNIT_PATH": f"{units}:"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_sandbox_keeps_its_budget(tmp_path: Path) -> None:
    """`systemd-analyze security` rates the exposure; 10 is none of these settings."""
    unit = tmp_path / "celery-worker@.service"
    text = role().template("celery-worker@.service.j2")
    text = text.replace("PrivateTmp=yes", "PrivateTmp=no")  # limits.conf has a /tmp of its own in its place
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=13", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_unit_compares_what_it_reads() -> None:
    """Each environment file, and what the role can change, is in the fingerprint."""
    unit = role().template("celery-worker@.service.j2")
    fingerprint = next(line for line in unit.splitlines() if "sha256sum" in line)
    read = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("EnvironmentFile=")]
    assert len(read) == 3
    for path in (*read, "/etc/systemd/system/celery-worker@.service", "/opt/celery/demo/current/release.json",
                 "/etc/systemd/system/celery-worker@%i.service.d/limits.conf"):  # fmt: skip
        assert f" {path} " in fingerprint
    assert fingerprint.endswith(" >/run/celery/%i.started'")
    assert role().evaluate("__celery_worker_units")[0]["fingerprint"] == "/run/celery/default-1.started"


def test_the_unit_waits_for_signs_of_life() -> None:
    """The node sets the time with its first one, and children cannot give any. 0 is never."""
    watched = role().template("celery-worker@.service.j2").splitlines()
    for line in ("NotifyAccess=exec", "WatchdogSec=300", "Environment=FLEET_NODE_WATCHDOG=60"):
        assert line in watched
    free = role(celery_worker_watchdog=0).template("celery-worker@.service.j2")
    assert not any(word in free for word in ("Watchdog", "WATCHDOG"))


TIMER_UNITS = {f"/etc/systemd/system/celery-watchdog.{kind}" for kind in ("timer", "service")}


def paths(rendered: Role) -> dict[str, set[str]]:
    """Return the paths of what is written to shape nodes, and of what is removed unless it is written."""
    shapes = rendered.evaluate("__celery_worker_config")
    return {"files": {file["path"] for file in shapes["files"]}, "purge": set(shapes["purge"])}


def test_a_timer_looks_whether_a_node_hangs_unseen() -> None:
    """It knows what the node's unit says, and goes with celery.target; without a watchdog there is none."""
    files = {"/usr/local/sbin/fleet-celery-watchdog", *TIMER_UNITS}
    watched = role(celery_worker_watchdog=90)
    service = watched.template("celery-watchdog.service.j2")
    words = "/usr/local/sbin/fleet-celery-watchdog 90 300 /etc/systemd/system/celery-worker@.service"
    assert f"ExecStart={words} /run/celery/{{}}.started\n" in service
    assert "WatchdogSec=300\n" in watched.template("celery-worker@.service.j2")
    assert "PartOf=celery.target\n" in watched.template("celery-watchdog.timer.j2")
    assert "Wants=celery-watchdog.timer\n" in watched.template("celery.target.j2")
    assert watched.evaluate("__celery_worker_other_units") == ["celery.target", "celery-watchdog.timer"]
    assert files <= paths(watched)["files"] & paths(watched)["purge"]

    free = role(celery_worker_watchdog=0)
    assert "Wants" not in free.template("celery.target.j2")
    assert free.evaluate("__celery_worker_other_units") == ["celery.target"]
    assert not files & paths(free)["files"]
    assert files <= paths(free)["purge"]


def test_a_timer_that_was_not_there_goes_with_the_nodes_that_were_not() -> None:
    """After a batch that failed, the host has what it had before."""
    back = {"removed": ["/etc/celery/nodes/io-1.env", "/etc/systemd/system/celery-watchdog.timer"]}
    new = role(__celery_worker_backup=back).evaluate("__celery_worker_new")
    assert new == ["celery-worker@io-1.service", "celery-watchdog.timer"]


def test_a_start_takes_as_long_as_the_app_may_take_to_load() -> None:
    """Several times as long as in the check of its release, where nothing else starts."""
    unit = role(celery_worker_import_timeout=100).template("celery-worker@.service.j2").splitlines()
    assert "TimeoutStartSec=500" in unit
    assert "ExecStartPre=+/usr/local/sbin/fleet-celery-start turn %i 500" in unit
    given = yaml.safe_load(Path("playbooks/vars/celery_worker.yml").read_text())
    default = Role("celery_app").evaluate("celery_app_check_timeout")
    expected = f"celery_app_check_timeout | default({default})"
    assert given["celery_worker_import_timeout"] == f"{{{{ {expected} }}}}"
    assert role().evaluate("celery_worker_import_timeout") == default


def test_each_host_answers_for_its_own_nodes_only() -> None:
    """One host asks for the nodes of all."""
    seen = {"stdout": '{"p-1@host1": ["a"], "p-1@host2": []}'}
    rendered = role(
        {"p": {"queues": ["a", "b"]}, "io": {"queues": ["io"]}},
        ansible_play_batch=["host0", "host1"],
        hostvars={"host0": {"__celery_worker_health": seen}, "host1": {}},
        __celery_worker_to_check={"io-1@host1": ["io"], "p-1@host1": ["a", "b"]},
    )
    assert rendered.evaluate("__celery_worker_unhealthy_nodes") == {"io-1@host1": None, "p-1@host1": ["a"]}


def test_no_secret_is_in_a_file_that_others_may_read() -> None:
    """The broker's URL is in worker.env and nowhere else."""
    rendered = role()
    units = [rendered.template(name) for name in ("celery-worker@.service.j2", "celery.target.j2")]
    assert not any("p%25w" in text or "rediss:" in text for text in [*units, *node_files().values()])


def test_no_file_of_json_is_written_unless_asked() -> None:
    """The journal has everything."""
    assert "FLEET_LOG_FILE" not in "".join(node_files().values())
    assert "LogsDirectory" not in "".join(node_files().values())


def test_a_file_of_json_is_where_logrotate_looks() -> None:
    """For as many days as asked."""
    files = node_files(celery_worker_json_log_days=9)
    lines = environment(files["/etc/celery/nodes/default-1.env"])
    assert lines["FLEET_LOG_FILE"] == "/var/log/celery/default/{node}.jsonl"
    limits = files["/etc/systemd/system/celery-worker@default-1.service.d/limits.conf"]
    assert "LogsDirectory=celery/default\n" in limits
    rules = role(celery_worker_json_log_days=9).template("logrotate.j2")
    assert [line for line in rules.splitlines() if line.endswith("{")] == [
        f"/var/log/celery/{pool}/*.jsonl {{" for pool in sorted(POOLS)
    ]
    assert rules.count("    rotate 9\n") == rules.count("    su celery-") == len(POOLS)
    assert "    su celery-io celery\n    create 0640 celery-io celery\n" in rules


@pytest.mark.parametrize(
    ("leaving", "orphaned"),
    [
        (["w1"], ["a"]),
        (["w2"], []),
        (["named"], []),  # as its nodes have it
        (["w1", "w2"], ["a", "b"]),
        (["w3"], ["c"]),
        ([], []),
    ],
)
def test_a_queue_loses_its_last_consumer(leaving: list[str], orphaned: list[str]) -> None:
    """A pool without nodes consumes nothing, on a host that stays and on one that leaves."""
    variables: dict[str, dict[str, Any]] = {
        "w1": {"celery_worker_pools": {"p": {"queues": ["a", "b"]}}},
        "w2": {
            "celery_worker_host_name": "named",
            "celery_worker_pools": {"p": {"queues": ["b"]}, "off": {"queues": ["a", "d"], "nodes": 0}},
        },
        "w3": {"celery_worker_pools": {"p": {"queues": ["c"]}}},
    }
    assert filters.unconsumed(variables, variables, leaving) == orphaned
    decommission = yaml.safe_load(Path("playbooks/vars/decommission.yml").read_text())
    templar = Templar(
        DataLoader(),
        variables={
            **trusted(decommission),
            "hostvars": variables,
            "groups": {"workers": list(variables), "redis": ["r1"]},
            "ansible_play_hosts_all": leaving,
        },
    )
    assert templar.template(trust_as_template("{{ __decommission_orphans }}")) == orphaned
