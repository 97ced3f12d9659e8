# SPDX-License-Identifier: MIT
"""Finds what an app needs in Redis beyond its queues, and the variable of the inventory that allows it.

Without the variable, Redis refuses a command of a node or of a sender at run time, with a NoPermissionError.
See docs/security.md.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery.utils.nodenames import worker_direct

from fleet_runtime.inspect import queues

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Queue

# Variables of the role redis with their values in the inventory. A missing name allows nothing.
Rights = Mapping[str, Any]

# Files of an app's packages that are read at most.
MAX_FILES = 5000
REDBEAT = "RedBeatSchedulerEntry"
# A file without any of these words needs no variable.
WORDS = (REDBEAT.encode(), b"control", b"revoke")
MAY_SCHEDULE, MAY_CONTROL = "redis_web_may_schedule", "redis_web_may_control"


def refused(app: Celery, consumed: Collection[str], rights: Rights | None) -> list[str]:
    """Return a sentence for each right that every node, or every message of a queue, would lack.

    Args:
        app: The app, with its tasks imported.
        consumed: The queues that nodes consume, whose exchanges are allowed; empty if they are not known.
        rights: The variables of the inventory; None if they are not known.
    """
    if rights is None:
        return []
    if not consumed:
        return _direct(app, rights)
    declared = [queue for queue in queues.declared(app) if queues.name_of(queue) in consumed]
    return [
        *_exchanges(app, declared, {*consumed, *_allowed_exchanges(rights)}),
        *_expiring(declared, rights.get("redis_expiring_queues") or ()),
        *_broadcasts(declared, rights.get("redis_broadcasts") or {}),
        *_direct(app, rights),
    ]


def warned(app: Celery, module: str, rights: Rights | None) -> dict[str, str]:
    """Return what Redis may refuse to the code of an app, depending on where it runs.

    Args:
        app: The app, with its tasks imported.
        module: Name of the module of the app; empty if it is not known.
        rights: The variables of the inventory; None if they are not known.

    Returns:
        A sentence for each variable that is needed.
    """
    if rights is None or all(rights.get(name) for name in (MAY_SCHEDULE, MAY_CONTROL)):
        return {}
    own = {task.__module__ for name, task in app.tasks.items() if not name.startswith(queues.OWN)}
    found: dict[str, str] = {}
    for place, variable in _uses({name.partition(".")[0] for name in (*own, module) if name}):
        if variable not in found and not rights.get(variable):
            found[variable] = _SENTENCES[variable].format(place)
    return found


_SENTENCES = {
    MAY_SCHEDULE: (
        "{} writes entries of RedBeat. Redis refuses that to applications and tasks, unless "
        f"{MAY_SCHEDULE} is true in the inventory."
    ),
    MAY_CONTROL: (
        "{} may use remote control. A task may; Redis refuses it to an application, such as a web process, "
        f"unless {MAY_CONTROL} is true in the inventory."
    ),
}


def _allowed_exchanges(rights: Rights) -> Iterator[str]:
    """Yield the exchanges that the inventory allows in addition to those of queues."""
    yield from rights.get("redis_exchanges") or ()
    yield from rights.get("redis_broadcasts") or ()
    if rights.get("redis_worker_direct"):
        yield worker_direct("of any node").exchange.name


def _exchanges(app: Celery, declared: Collection[Queue], allowed: Collection[str]) -> list[str]:
    """Return a sentence for each exchange that Redis's access rules do not name."""
    used: dict[str, str] = {}
    for queue in declared:
        for exchange in (queue.exchange, *(bound.exchange for bound in queue.bindings)):
            if exchange and exchange.name and exchange.type != "fanout":
                used.setdefault(exchange.name, f"the queue {queues.name_of(queue)}")
    for exchange, reason in queues.exchanges(app):
        used.setdefault(exchange, reason)
    fanouts = {queue.exchange.name for queue in queues.declared(app) if _is_broadcast(queue)}
    return [
        f"Redis's access rules do not name the exchange {exchange}, which {reason} uses. Add it to "
        "redis_exchanges in the inventory."
        for exchange, reason in sorted(used.items())
        if exchange not in allowed and exchange not in fanouts
    ]


def _expiring(declared: Collection[Queue], allowed: Collection[str]) -> list[str]:
    """Return a sentence for each queue with `expires` that senders may not set."""
    return [
        f"The queue {queue.name} has expires, which Redis refuses to senders. Add it to "
        "redis_expiring_queues in the inventory."
        for queue in sorted(declared, key=queues.name_of)
        if not _is_broadcast(queue)
        and (queue.expires or (queue.queue_arguments or {}).get("x-expires"))
        and queue.name not in allowed
    ]


def _broadcasts(declared: Collection[Queue], allowed: Mapping[str, str]) -> list[str]:
    """Return a sentence for each Broadcast queue whose channel Redis's access rules do not name."""
    return [
        f"The Broadcast queue {queues.name_of(queue)} needs redis_broadcasts in the inventory to have "
        f"{queue.exchange.name}: {json.dumps(queue.routing_key or '')}."
        for queue in sorted(declared, key=queues.name_of)
        if _is_broadcast(queue) and allowed.get(queue.exchange.name) != (queue.routing_key or "")
    ]


def _direct(app: Celery, rights: Rights) -> list[str]:
    """Return a sentence if each node has its own queue, which Redis's access rules do not name."""
    if not app.conf.worker_direct or rights.get("redis_worker_direct"):
        return []
    return [
        "With worker_direct each node has a queue of its own, such as default-1@host.dq2, and Redis refuses "
        "it. Set redis_worker_direct: true in the inventory."
    ]


def _is_broadcast(queue: Queue) -> bool:
    """Return whether all nodes get each message of a queue."""
    return bool(queue.exchange) and queue.exchange.type == "fanout"


def _uses(packages: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each place in the source of packages that needs a variable, and the variable."""
    for path, shown in _sources(packages):
        try:
            source = path.read_bytes()
            tree = ast.parse(source if any(word in source for word in WORDS) else b"")
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue  # an import of it fails with a message of its own
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt | ast.expr) and (variable := _needs(node)):
                yield f"{shown}, line {node.lineno},", variable


def _sources(packages: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Yield each file of packages, and its name for a sentence."""
    left = MAX_FILES
    for name in sorted(packages):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # such as __main__
            continue
        for place in (spec.submodule_search_locations or ()) if spec else ():
            files = [
                path for path in sorted(Path(place).rglob("*.py")) if not _is_test(path.relative_to(place))
            ][:left]
            left -= len(files)
            yield from ((path, f"{name}/{path.relative_to(place)}") for path in files)
        if spec and not spec.submodule_search_locations and str(spec.origin).endswith(".py"):
            yield Path(str(spec.origin)), Path(str(spec.origin)).name


def _is_test(path: Path) -> bool:
    """Return whether a file of a package is one of its tests."""
    return path.name.startswith(("test_", "conftest")) or not {"test", "tests"}.isdisjoint(path.parts[:-1])


def _needs(node: ast.AST) -> str:
    """Return the variable that a node of a syntax tree needs; an empty string if none."""
    match node:
        case ast.ImportFrom(names=names) if any(name.name == REDBEAT for name in names):
            return MAY_SCHEDULE
        case ast.Attribute(attr=attr) if attr == REDBEAT:
            return MAY_SCHEDULE
        case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="control"))):
            return MAY_CONTROL
        case ast.Call(func=ast.Attribute(attr="revoke", value=ast.Call(func=made))):
            is_result = "AsyncResult" in (getattr(made, "id", ""), getattr(made, "attr", ""))
            return MAY_CONTROL if is_result else ""
    return ""
