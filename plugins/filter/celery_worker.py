# SPDX-License-Identifier: MIT
"""The role celery_worker's filters: what a pool's options mean to `celery worker`, and which cannot be.

The options are described in roles/celery_worker/meta/pool.yml.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.fleet.celery.plugins.module_utils import rules
from ansible_collections.fleet.celery.plugins.module_utils.paths import COMMAND
from ansible_collections.fleet.celery.plugins.module_utils.runtime_figures import SOFT_TIME_LIMIT_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Options = Mapping[str, Any]

DEFAULTS: dict[str, Any] = {
    "nodes": 1,
    "pool": "prefork",
    "prefetch_multiplier": 1,
    "disable_prefetch": False,
    "time_limit": 3600,
    "tmp_on_disk": False,
}

# The options of each profile that do not depend on the host. README.md of the role has the figures.
PROFILES: dict[str, dict[str, Any]] = {
    "cpu": {"pool": "prefork", "prefetch_multiplier": 1, "disable_prefetch": True},
    "io": {"pool": "threads", "prefetch_multiplier": 1},
    # More than the one that runs, so that the next is there when it ends; few, as a dead node holds them all.
    "short": {"pool": "prefork", "concurrency": 1, "prefetch_multiplier": 4},
    "long": {"pool": "prefork", "prefetch_multiplier": 1, "disable_prefetch": True},
}
# Threads of one process use one CPU between them, which can start about 1,000 tasks a second: as many as a
# hundred threads run of tasks of a tenth of a second. More would wait for each other.
THREADS_PER_CPU = 20
MOST_THREADS = 100

# Option of a pool -> option of `celery worker`.
FLAGS = {
    "concurrency": "--concurrency",
    "prefetch_multiplier": "--prefetch-multiplier",
    "time_limit": "--time-limit",
    "soft_time_limit": "--soft-time-limit",
    "max_tasks_per_child": "--max-tasks-per-child",
    "max_memory_per_child": "--max-memory-per-child",
}

# Celery ignores in silence what a type of pool cannot do, and a limit that one relies on would never fire.
CAPABLE = {
    "autoscale": {"prefork", "gevent"},
    "soft_time_limit": {"prefork"},
    "max_tasks_per_child": {"prefork"},
    "max_memory_per_child": {"prefork"},
}

# The least that the numbers among a pool's options may be.
LEAST = {"nodes": 0, "tasks_max": 1, **dict.fromkeys(FLAGS, 1)}

# Options that the unit gives itself.
OWNED = re.compile(
    r"(-[AnQDflBPcE]|--(app|hostname|queues|detach|logfile|loglevel|beat|pool|autoscale|uid|gid|umask|pidfile"
    r"|workdir|executable|(task-)?events|concurrency|prefetch-multiplier|(soft-)?time-limit"
    r"|max-(tasks|memory)-per-child)(=|\Z))"
)

POOL_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}\Z")
HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
WORD = re.compile(r"[A-Za-z0-9_.,:=/@+-]+\Z")
SIZE = re.compile(r"([1-9][0-9]*)([KMGT])\Z")
FORMS = {
    "memory_max": (SIZE, "a number with K, M, G or T, such as 512M"),
    "cpu_quota": (re.compile(r"[1-9][0-9]*%\Z"), "a percentage of one CPU, such as 150%"),
    "allowed_cpus": (
        re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\Z"),
        "numbers and ranges of CPUs, such as 0-3,6",
    ),
    "tmp_max": (SIZE, "a number with K, M, G or T, such as 2G"),
    "umask": (re.compile(r"0?[0-7]{3}\Z"), 'an octal number in quotes, such as "0022"'),
}
DEVICE = re.compile(r"/dev/[A-Za-z0-9_./-]+\Z")
GROUP = re.compile(r"[a-z_][a-z0-9_-]{0,30}\Z")
UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

# A child takes this much before it has done anything (proportional set size, Python 3.11, a small app), and a
# node's main process this much.
CHILD_BYTES = 25 * UNITS["M"]
MAIN_BYTES = 32 * UNITS["M"]
# A user's name has at most so many characters.
LONGEST_USER = 31
# Users of other components are named celery-<component>, too; a pool of that name gets another user.
COMPONENTS = {
    "app",
    "backup",
    "beat",
    "build",
    "check",
    "exporter",
    "flower",
    "fleet",
    "ops",
    "sentinel",
    "web",
}

# The default bounds of a node: its share of the host's memory, and the share of that for files in /tmp.
NODE_MEMORY_PERCENT = 80
TMP_SHARE = 0.5
# Processes and threads: some for the node itself, and for each task that it runs at once some of its own, and
# what libraries start for each CPU (BLAS, OpenMP, a program that the task runs).
NODE_TASKS = 256
TASKS_EACH = 64
TASKS_EACH_CPU = 4

# Of a host's memory, for the nodes that a profile shapes. The rest is the system's, and that of all else.
MEMORY_SHARE = 0.75


def complete(
    pools: Mapping[str, Options], cpus: int | None = None, memory_mb: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return the pools with the default of each option that they do not set.

    What a pool sets comes before what its profile says, and that before the default.

    Args:
        pools: As the inventory gives them.
        cpus: Number of the host's CPUs. Pools without a profile do not need it.
        memory_mb: The host's memory in MiB; nothing if that is no bound.

    Raises:
        ValueError: A pool has a profile, and the CPUs are not known.
    """
    completed = {
        name: {**DEFAULTS, **of_profile(options, cpus, memory_mb), **options}
        for name, options in pools.items()
    }
    for options in completed.values():
        if options["pool"] in CAPABLE["soft_time_limit"]:
            options.setdefault("soft_time_limit", int(options["time_limit"] * SOFT_TIME_LIMIT_SHARE))
    return completed


def of_profile(given: Options, cpus: int | None, memory_mb: int | None) -> dict[str, Any]:
    """Return the options that a pool's profile sets on a host; none if the pool has no profile."""
    if "profile" not in given:
        return {}
    if cpus is None:
        raise ValueError(f"profile: {given['profile']} needs the host's CPUs. Gather its facts.")
    options = {**PROFILES[given["profile"]], **given}
    said = {**PROFILES[given["profile"]], **sized(options, usable_cpus(options, cpus), memory_mb)}
    if "autoscale" in given or options["pool"] == "solo":
        said.pop("concurrency", None)
    if given.get("prefetch_multiplier", 1) > 1:
        said.pop("disable_prefetch", None)
    if given.get("disable_prefetch"):
        said.pop("prefetch_multiplier")
    return said


def sized(options: Options, cpus: int, memory_mb: int | None) -> dict[str, Any]:
    """Return how many nodes or tasks at once fill a host, for a pool with a profile; at least one."""
    room = sys.maxsize if memory_mb is None else int(memory_mb * UNITS["M"] * MEMORY_SHARE)
    limit = size(options.get("memory_max", ""))
    child = max(CHILD_BYTES, options.get("max_memory_per_child", 0) * UNITS["K"])
    if options["profile"] == "short":
        node = max(limit, MAIN_BYTES + children(options, cpus) * child)
        return {"nodes": max(1, min(cpus, room // node))}
    nodes = max(1, options.get("nodes", 1))
    if options["profile"] == "io":
        return {"concurrency": max(1, min(THREADS_PER_CPU * cpus // nodes, MOST_THREADS))}
    room = min(room // nodes, limit or room)
    return {"concurrency": max(1, min(cpus // nodes, room // child))}


def usable_cpus(options: Options, cpus: int) -> int:
    """Return how many of a host's CPUs the nodes of a pool may use."""
    spans = re.findall(r"([0-9]+)(?:-([0-9]+))?", options.get("allowed_cpus", ""))
    allowed = [
        number
        for number in range(cpus)
        if any(int(first) <= number <= int(last or first) for first, last in spans)
    ]
    return len(allowed) if spans else cpus


def nodes(pools: Mapping[str, Mapping[str, Any]], host_name: str) -> list[dict[str, Any]]:
    """Return the nodes of a host, sorted by pool and number.

    Each is a mapping with `name` (the instance of celery-worker@.service, `<pool>-<n>`), `pool`, `node`
    (Celery's name, `<pool>-<n>@<host_name>`) and `options`, the pool's.
    """
    result = []
    for pool, options in sorted(pools.items()):
        for number in range(1, int(options.get("nodes", 1)) + 1):
            name = f"{pool}-{number}"
            result.append({"name": name, "pool": pool, "node": f"{name}@{host_name}", "options": options})
    return result


def expected_nodes(variables: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> list[str]:
    """Return the Celery names of the nodes of those hosts that this run has found not to be drained.

    Of a host whose facts this run did not gather: the nodes that a host with one CPU has.

    Args:
        variables: The variables of all hosts, as `hostvars` has them.
        hosts: Names of the hosts of workers.
    """
    names = []
    for host in hosts:
        of = variables[host]
        if of.get("celery_worker_result", {}).get("drained") is False:
            facts = of.get("ansible_facts", {})
            cpus, memory_mb = facts.get("processor_vcpus", 1), facts.get("memtotal_mb")
            pools = complete(plain(of["celery_worker_pools"]), cpus, memory_mb)
            names += [node["node"] for node in nodes(pools, of.get("celery_worker_host_name", host))]
    return names


def wanted(variables: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> dict[str, Any]:
    """Return the nodes that the inventory wants, for `fleet status`.

    Args:
        variables: The variables of all hosts, as `hostvars` has them.
        hosts: Names of the hosts of workers.

    Returns:
        `nodes`, each with its queues; `unknown`, hosts (by their part of the nodes' names) whose nodes follow
        from facts that this run did not gather; `idle_queues`, those of which all pools have `nodes: 0`.
    """
    found: dict[str, list[str]] = {}
    unknown: list[str] = []
    idle: set[str] = set()
    used: set[str] = set()
    for host in hosts:
        of = variables[host]
        name, pools = of.get("celery_worker_host_name", host), plain(of["celery_worker_pools"])
        facts = of.get("ansible_facts", {})
        if "processor_vcpus" not in facts and any("profile" in pool for pool in pools.values()):
            unknown.append(name)
            used.update(queue for pool in pools.values() for queue in pool["queues"])
            continue
        pools = complete(pools, facts.get("processor_vcpus"), facts.get("memtotal_mb"))
        for options in pools.values():
            (used if options["nodes"] else idle).update(options["queues"])
        found.update({node["node"]: node["options"]["queues"] for node in nodes(pools, name)})
    return {"nodes": found, "unknown": unknown, "idle_queues": sorted(idle - used)}


def pools_of(variables: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> list[str]:
    """Return the pools of which some hosts have nodes.

    >>> pools_of({"w1": {"celery_worker_pools": {"a": {}, "b": {"nodes": 0}}}}, ["w1"])
    ['a']
    """
    pools = [item for host in hosts for item in plain(variables[host]["celery_worker_pools"]).items()]
    return sorted({name for name, pool in pools if pool.get("nodes", 1)})


def unconsumed(
    variables: Mapping[str, Mapping[str, Any]], hosts: Iterable[str], leaving: Iterable[str]
) -> list[str]:
    """Return the queues that no node would consume without the nodes of some hosts.

    Args:
        variables: The variables of all hosts, as `hostvars` has them.
        hosts: Names of all hosts of workers.
        leaving: The hosts that stop consuming, by their names in the inventory or in their nodes' names.
    """
    consumed: set[str] = set()
    left: set[str] = set()
    for host in hosts:
        pools = plain(variables[host]["celery_worker_pools"]).values()
        queues = {queue for pool in pools if pool.get("nodes", 1) for queue in pool["queues"]}
        consumed |= queues
        if not {host, variables[host].get("celery_worker_host_name", host)} & set(leaving):
            left |= queues
    return sorted(consumed - left)


def each(names: list[str], **templates: str) -> list[dict[str, str]]:
    """Return a mapping for each name: the templates, with the name for `{}`."""
    return [{key: text.replace("{}", name) for key, text in templates.items()} for name in names]


def self_tests(
    nodes: list[Mapping[str, Any]], unit: str, timeout: int, *, any_queues: bool = False
) -> dict[str, list[str]]:
    """Return for each unit the command that succeeds when its node works.

    Args:
        nodes: As `nodes` returns them.
        unit: Name of a unit, with `{}` for the node's name.
        timeout: Seconds that the command may take.
        any_queues: Whether it does not matter which queues the nodes consume.
    """
    # The former name of `fleet ready`: after a rollback the command may be that of a release from before it.
    command = [COMMAND, "fleet", "prove", f"--timeout={timeout}"]
    return {
        unit.replace("{}", node["name"]): [
            *command,
            node["node"],
            *([] if any_queues else node["options"]["queues"]),
        ]
        for node in nodes
    }


def unhealthy(answer: str, expected: Mapping[str, Sequence[str]]) -> dict[str, list[str] | None]:
    """Return the nodes that do not consume their queues, or others, too.

    Args:
        answer: The output of `fleet consumed`.
        expected: Each node with the queues that it should consume.

    Returns:
        The nodes, each with the queues that it consumes instead, or None if it does not answer.

    >>> unhealthy('{"a-1@h": ["x", "y"], "b-1@h": ["z"]}', {"a-1@h": ["y", "x"], "b-1@h": ["x"], "c-1@h": []})
    {'b-1@h': ['z'], 'c-1@h': None}
    """
    try:
        consumed = {node: sorted(queues) for node, queues in json.loads(answer).items()}
    except (ValueError, TypeError, AttributeError):  # the command failed, and has printed why
        consumed = {}
    wrong = [node for node, queues in expected.items() if consumed.get(node) != sorted(queues)]
    return {node: consumed.get(node) for node in wrong}


def arguments(options: Options, log_level: str, *, task_events: bool) -> list[str]:
    """Return the options of `celery worker` for a node of a pool.

    Args:
        options: The pool's, with defaults.
        log_level: As Celery names it.
        task_events: Whether the node sends an event for each step of each task, if the pool does not say.
    """
    words = [
        f"--queues={','.join(options['queues'])}",
        f"--pool={options['pool']}",
        f"--loglevel={log_level}",
    ]
    words += [f"{flag}={options[name]}" for name, flag in FLAGS.items() if name in options]
    if "autoscale" in options:
        words.append(f"--autoscale={options['autoscale']['max']},{options['autoscale']['min']}")
    if options["disable_prefetch"]:
        words.append("--disable-prefetch")
    if options.get("task_events", task_events):
        words.append("--task-events")
    # Gossip and mingle cost each node as many messages as the fleet has nodes, and nothing here uses them.
    # Heartbeats tell Flower that the node is there. One in 10 s is enough, and a fifth of the default.
    words += ["--without-gossip", "--without-mingle", "--heartbeat-interval=10"]
    return words + list(options.get("extra_arguments", ()))


def user(pool: str) -> str:
    """Return the Unix user of a pool's nodes: `celery-<pool>`, at most 31 characters, and no other pool's.

    A name that is too long, or that of another component, is cut and ends with a part of its checksum. No
    name of a pool has a hyphen, so none can look like that.

    >>> user("email")
    'celery-email'
    >>> user("thumbnails_of_uploaded_pictures")
    'celery-thumbnails_of_u-699c75c4'
    """
    name = f"celery-{pool}"
    if len(name) <= LONGEST_USER and pool not in COMPONENTS:
        return name
    ending = f"-{hashlib.sha256(pool.encode()).hexdigest()[:8]}"
    return name[: LONGEST_USER - len(ending)] + ending


def access(nodes: Iterable[Mapping[str, Any]], writable: Iterable[str]) -> list[str]:
    """Return the groups, devices and paths that the tasks of a host need, as words for a script.

    `group:NAME`, `device:PATH`, `user:NAME:,GROUP,...` and `path:PATH`, in this order.

    Args:
        nodes: As `nodes` returns them.
        writable: Paths that the tasks may write to.
    """
    pools = {node["pool"]: node["options"] for node in nodes}
    words = [f"group:{group}" for pool in pools.values() for group in pool.get("groups", ())]
    words += [f"device:{device}" for pool in pools.values() for device in pool.get("devices", ())]
    if paths := [f"path:{path}" for path in writable]:
        for name, pool in pools.items():
            words.append(f"user:{user(name)}:{''.join(f',{group}' for group in pool.get('groups', ()))}")
        words += paths
    return list(dict.fromkeys(words))


def limits(options: Options, cpus: int) -> list[str]:
    """Return the settings of systemd that bound a node of a pool, a line each.

    Args:
        options: The pool's, with defaults.
        cpus: Number of the host's CPUs.
    """
    memory = size(options.get("memory_max", ""))
    tmp = options.get("tmp_max") or (
        f"{int(memory * TMP_SHARE)}" if memory else f"{int(NODE_MEMORY_PERCENT * TMP_SHARE)}%"
    )
    lines = [
        f"MemoryMax={options.get('memory_max', f'{NODE_MEMORY_PERCENT}%')}",
        # what a limit keeps from memory must not go to swap instead, for as long as there is any
        *(["MemorySwapMax=0"] if memory else []),
        f"TasksMax={options.get('tasks_max', most_tasks(options, cpus))}",
    ]
    names = {"cpu_quota": "CPUQuota", "allowed_cpus": "AllowedCPUs", "umask": "UMask"}
    lines += [f"{setting}={options[name]}" for name, setting in names.items() if name in options]
    places = ["/dev/shm"]
    if options.get("tmp_on_disk"):
        lines.append("Environment=TMPDIR=/var/tmp")
    else:
        lines.append("PrivateTmp=no")
        places += ["/tmp", "/var/tmp"]
    lines += [f"TemporaryFileSystem={place}:mode=1777,size={tmp}" for place in places]
    for device in options.get("devices", ()):
        lines += [f"BindPaths={device}", f"DeviceAllow={device} rw"]
    if groups := options.get("groups"):
        lines.append(f"SupplementaryGroups={' '.join(groups)}")
    return lines


def most_tasks(options: Options, cpus: int) -> int:
    """Return how many processes and threads a node needs at most, if its tasks are no fork bombs."""
    at_once = options["autoscale"]["max"] if "autoscale" in options else options.get("concurrency")
    at_once = at_once or (1 if options["pool"] == "solo" else cpus)
    return int(NODE_TASKS + at_once * (TASKS_EACH + TASKS_EACH_CPU * cpus))


def problems(
    pools: Mapping[str, Any], specification: str, host_name: str, cpus: int | None, memory_mb: int | None
) -> list[str]:
    """Return what is wrong with a host's pools, a sentence each; nothing if their nodes can run.

    Where the host's size is not known, only what no host could run is wrong.

    Args:
        pools: As the inventory gives them.
        specification: Path of the role's meta/pool.yml.
        host_name: The host's part of the nodes' names.
        cpus: Number of the host's CPUs, if it is known.
        memory_mb: The host's memory in MiB, if it is known.
    """
    found, spec = [], pool_options(str(specification))
    pools = plain(pools)
    if not HOST_NAME.match(host_name):
        found.append(f"celery_worker_host_name is {host_name!r}, which cannot be part of a node's name.")
    for name, given in pools.items():
        wrong = list(type_problems(given, spec)) or [
            *profile_problems(given),
            *pool_problems(name, complete({name: given}, cpus or 1, memory_mb)[name], cpus),
        ]
        found += [f"Pool {name!r}: {problem}" for problem in wrong]
    if found or memory_mb is None:
        return found
    return list(host_problems(list(complete(pools, cpus or 1, memory_mb).values()), cpus, memory_mb))


def plain(value: Any) -> Any:
    """Return variables as nothing but themselves.

    As a filter gets them they know how to template what is in them, and a copy of them, as Ansible's
    validator makes one, takes all of Ansible's templating along: a third of a second for each pool.
    """
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


@cache
def pool_options(specification: str) -> Mapping[str, Any]:
    """Return the options of a pool, by the path of the role's meta/pool.yml."""
    # A hundred lines, which take Ansible's own filter for YAML half a second, on each host.
    described = yaml.load(Path(specification).read_text(), Loader=yaml.CSafeLoader)
    options: Mapping[str, Any] = described["options"]
    return options


def type_problems(given: Any, spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options of a pool that do not exist, are missing or have the wrong type."""
    if not isinstance(given, dict):
        yield "it must be a dictionary of options."
        return
    result = ArgumentSpecValidator(dict(spec)).validate(given)
    yield from (f"{message}." for message in result.error_messages)
    for name, value in given.items():
        # the specification would take "4" for 4, but only the validation would see the number
        meant = result.validated_parameters.get(name)
        if isinstance(value, str) and isinstance(meant, int):
            kind = "true or false" if isinstance(meant, bool) else "a number"
            yield f"{name} is the text {value!r}, and must be {kind}."


def profile_problems(given: Options) -> Iterator[str]:
    """Yield what a pool's profile cannot know."""
    if given.get("profile") == "long" and "time_limit" not in given:
        yield (
            "profile: long needs time_limit, the seconds that its longest task may take: a node that stops, "
            "at a deployment too, waits for so long."
        )


def pool_problems(name: str, options: Options, cpus: int | None) -> Iterator[str]:
    """Yield what is wrong with one pool."""
    if not POOL_NAME.match(name):
        yield "the name must be lower case letters, digits and _, at most 31, with a letter first."
    if not options["queues"]:
        yield "queues is empty."
    for queue in options["queues"]:
        if rules.queue(queue):
            yield f"the queue {queue!r} must be letters, digits and _ . : -, at most 100."
    if len(set(options["queues"])) != len(options["queues"]):
        yield "a queue is named twice."
    yield from concurrency_problems(options)
    yield from limit_problems(options, cpus)
    yield from memory_problems(options, cpus)
    yield from access_problems(options)
    for name_, value in options.get("environment", {}).items():
        if name_.startswith(("FLEET_", "CELERY_")):
            yield f"environment may not set {name_}: the fleet sets it."
        if not isinstance(value, (str, int, float)) or "\n" in str(value):
            yield f"the value of {name_} in environment must be one line of text."
    for word in options.get("extra_arguments", ()):
        if OWNED.match(word):
            yield f"extra_arguments may not contain {word!r}: the role gives that option itself."
        elif not WORD.match(word):
            yield f"{word!r} in extra_arguments must be one word, without quotes: --option=value."


def access_problems(options: Options) -> Iterator[str]:
    """Yield what is wrong with the devices and groups of a pool."""
    for device in options.get("devices", ()):
        if not DEVICE.match(device) or "/." in device:
            yield f"{device!r} in devices must be the path of a device, such as /dev/nvidia0."
    for group in options.get("groups", ()):
        if not GROUP.match(group):
            yield f"{group!r} in groups must be the name of a group of the host, such as www-data."
    if options.get("tmp_on_disk") and "TMPDIR" in options.get("environment", {}):
        yield "tmp_on_disk sets TMPDIR, and so does environment. Leave one of them out."


def concurrency_problems(options: Options) -> Iterator[str]:
    """Yield what is wrong with how many tasks a pool runs at once, and with what its type cannot do."""
    pool, autoscale = options["pool"], options.get("autoscale")
    for option, capable in CAPABLE.items():
        if option in options and pool not in capable:
            yield f"{option} has no effect with pool: {pool}, only with {' and '.join(sorted(capable))}."
    if autoscale and "concurrency" in options:
        yield "set concurrency or autoscale, not both."
    if autoscale and not 1 <= autoscale["min"] <= autoscale["max"]:
        yield f"autoscale needs 1 <= min <= max, and has min {autoscale['min']}, max {autoscale['max']}."
    if pool in {"threads", "gevent"} and not autoscale and "concurrency" not in options:
        yield f"pool: {pool} needs concurrency: how many tasks it runs at once does not follow from the CPUs."
    if pool == "solo" and options.get("concurrency", 1) != 1:
        yield "pool: solo runs one task at a time, so concurrency must be 1 or not set."
    if options["disable_prefetch"] and options["prefetch_multiplier"] > 1:
        yield f"prefetch_multiplier is {options['prefetch_multiplier']}, of no effect with disable_prefetch."


def limit_problems(options: Options, cpus: int | None) -> Iterator[str]:
    """Yield what is wrong with the limits of a pool's nodes and tasks."""
    for option, least in LEAST.items():
        if options.get(option, least) < least:
            yield f"{option} is {options[option]}, and must be {least} or more."
    if options.get("soft_time_limit", 0) >= options["time_limit"]:
        yield f"soft_time_limit must be less than time_limit, which is {options['time_limit']}."
    for option, (form, example) in FORMS.items():
        if option in options and not form.match(options[option]):
            yield f"{option} is {options[option]!r}, and must be {example}."
    allowed = re.findall("[0-9]+", options.get("allowed_cpus", ""))
    if cpus is not None and any(int(number) >= cpus for number in allowed):
        yield f"allowed_cpus is {options['allowed_cpus']}, but the host has the CPUs 0 to {cpus - 1} only."


def memory_problems(options: Options, cpus: int | None) -> Iterator[str]:
    """Yield a limit of memory that would kill children before the other one replaces them."""
    count, each_kb = children(options, cpus), options.get("max_memory_per_child", 0)
    if "memory_max" in options and count * each_kb * UNITS["K"] > size(options["memory_max"]):
        yield (
            f"{count} children that may each grow to {each_kb} KiB (max_memory_per_child) do not fit into "
            f"memory_max: {options['memory_max']}. They would be killed before they are replaced."
        )


def host_problems(pools: list[Options], cpus: int | None, memory_mb: int) -> Iterator[str]:
    """Yield what the nodes of a host want together, but the host does not have."""
    memory = memory_mb * UNITS["M"]
    reserved = sum(options["nodes"] * size(options.get("memory_max", "")) for options in pools)
    if reserved > memory:
        yield f"All memory_max together are {reserved // UNITS['M']} MiB; the host has {memory_mb} MiB."
    processes = sum(options["nodes"] * children(options, cpus) for options in pools)
    idle = processes * CHILD_BYTES
    if idle > memory:
        yield (
            f"The nodes would run {processes} child processes, and those take {idle // UNITS['M']} MiB "
            f"before any of them works; the host has {memory_mb} MiB. Lower nodes or concurrency."
        )


def children(options: Options, cpus: int | None) -> int:
    """Return how many child processes a node may have; one, if that depends on CPUs that are not known."""
    if options["pool"] != "prefork":
        return 0
    if "autoscale" in options:
        return int(options["autoscale"]["max"])
    return int(options.get("concurrency", cpus or 1))


def size(text: str) -> int:
    """Return the bytes of a size such as 512M; 0 if it is none."""
    match = SIZE.match(text)
    return int(match[1]) * UNITS[match[2]] if match else 0


class FilterModule:
    """The filters' names in Jinja."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "celery_worker_access": access,
            "celery_worker_arguments": arguments,
            "celery_worker_complete": complete,
            "celery_worker_each": each,
            "celery_worker_expected_nodes": expected_nodes,
            "celery_worker_limits": limits,
            "celery_worker_nodes": nodes,
            "celery_worker_pools_of": pools_of,
            "celery_worker_problems": problems,
            "celery_worker_self_tests": self_tests,
            "celery_worker_unconsumed": unconsumed,
            "celery_worker_unhealthy": unhealthy,
            "celery_worker_user": user,
            "celery_worker_wanted": wanted,
        }
