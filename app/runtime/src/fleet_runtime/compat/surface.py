# SPDX-License-Identifier: MIT
"""The names inside Celery, kombu, billiard and redis-py that the runtime depends on, all of them.

A name is here if it is private (`_x`), or if it is public and the runtime replaces it, overrides it in a
subclass, or copies what it does. Documented extension points (bootsteps, signals, settings) are not here.

A process at the level `full` calls `require` for the features that it has, and a patch calls `may_replace`:
both refuse a process in which another package has replaced a name. `fleet check` asks `problems`. At the
level `standard` no name is replaced but those of ALWAYS_REPLACED. The tests in test_surface.py compare each
name with the installed packages: that it exists, its parameters, and for what is replaced or copied the text
of the original. They also search the runtime's source for names that are not here. `versions.RELEASES` has
the versions that all of this was verified on. docs/compatibility.md says how to verify another one, and
UPSTREAM.md why each patch is there and when it can go.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fleet_runtime.compat.versions import OR_STANDARD, RELEASES, unsupported
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Replaced at every level: without it nothing that runs a script works on the fleet's Redis, which lets only
# the administrator load one.
ALWAYS_REPLACED = frozenset({"redis.commands.core:Script.__call__"})


class Kind(StrEnum):
    """What the runtime does with a name. If it does several of these, the last one counts."""

    READ = "read"  # reads an attribute
    WRITE = "write"  # assigns an attribute of an object, or changes a table
    CALL = "call"  # calls a function or a method
    OVERRIDE = "override"  # overrides it in a subclass
    COPIED = "copied"  # repeats a part of its body in a function of the runtime's own
    REPLACE = "replace"  # replaces it for the whole process


class Feature(StrEnum):
    """What a process cannot have if a name that it relies on is not as verified."""

    TRANSPORT = "transport"
    POOL = "pool"


@dataclass(frozen=True)
class Name:
    """A name that the runtime depends on.

    Attributes:
        attribute: The name itself.
        kind: What the runtime does with it.
        rooms: The packages of the runtime that do so, with spaces between.
        parameters: Of a function: the names of its parameters, with spaces between. If verified versions
            differ, all of them, with ` | ` between. None if it is no function.
        sha256: Of what is replaced or copied: the SHA-256 of the original's source without indentation, empty
            lines and comments. If verified versions differ, all of them, with spaces between.
        feature: What is refused at start if the parameters are others.
        seen_in: `module:function` that assigns or uses the name, where its owner does not show it.
        owner: `module` or `module:Class`. A class may inherit the name.
    """

    attribute: str
    kind: Kind
    rooms: str
    parameters: str | None = None
    sha256: str = ""
    feature: Feature | None = None
    seen_in: str = ""
    owner: str = ""

    def __str__(self) -> str:
        """Return the name with its owner."""
        return f"{self.owner}.{self.attribute}"

    @property
    def package(self) -> str:
        """The package that has the name."""
        return self.owner.partition(":")[0].partition(".")[0]


def require(feature: Feature) -> None:
    """Make sure that all names that a feature relies on are as verified.

    Raises:
        FleetError: Another package has replaced one.
    """
    for name in SURFACE:
        if name.feature is feature and not has_parameters(name):
            raise FleetError(_replaced(name))


def problems() -> Iterator[str]:
    """Yield why this process cannot have the level `full`, a sentence each.

    Names of modules that are imported for a kind of pool only count if the app has imported them.
    """
    if sentence := unsupported():
        yield sentence
        return
    for name in SURFACE:
        checked = name.feature or (name.kind is Kind.REPLACE and name.parameters is not None)
        is_there = name.owner != "celery.concurrency.gevent" or name.owner in sys.modules
        if checked and is_there and not has_parameters(name):
            yield _replaced(name)


def may_replace(owner: str, attribute: str) -> Callable[..., Any] | None:
    """Return the function that a patch is about to replace; None if the runtime has replaced it already.

    Args:
        owner: As in SURFACE.
        attribute: As in SURFACE.

    Raises:
        FleetError: Another package has replaced it by a function with other parameters.
        LookupError: SURFACE does not have it as a name that is replaced.
    """
    name = find(owner, attribute)
    if name.kind is not Kind.REPLACE:
        raise LookupError(f"{name} is in the surface as {name.kind}, and must not be replaced")
    original: Callable[..., Any] = getattr(resolve(owner), attribute)
    if is_own(original):
        return None
    if not has_parameters(name):
        raise FleetError(_replaced(name))
    return original


def is_own(function: Any) -> bool:
    """Return whether a function is a patch of the runtime, or a wrapper of another package around one."""
    while function is not None:
        if getattr(function, "__globals__", {}).get("__name__", "").startswith("fleet_runtime."):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _replaced(name: Name) -> str:
    """Return a sentence that says that another package has replaced a name."""
    by = getattr(getattr(resolve(name.owner), name.attribute, None), "__module__", None) or "unknown"
    version = " or ".join(sorted(RELEASES[name.package]))
    return (
        f"Another package (the module {by}) has replaced {name}, and the level full relies on that of "
        f"{name.package} {version}: remove what replaces it, {OR_STANDARD}"
    )


def find(owner: str, attribute: str) -> Name:
    """Return an entry of SURFACE.

    Raises:
        LookupError: There is none.
    """
    for name in SURFACE:
        if (name.owner, name.attribute) == (owner, attribute):
            return name
    raise LookupError(f"{owner}.{attribute} is not in the surface")


def resolve(owner: str) -> Any:
    """Return what `module`, `module:Class` or `module:Class.function` names."""
    module, _, path = owner.partition(":")
    found: Any = importlib.import_module(module)
    for part in filter(None, path.split(".")):
        found = getattr(found, part)
    return found


def has_parameters(name: Name) -> bool:
    """Return whether a name is a function with parameters that were verified.

    A wrapper that keeps the original, as `functools.wraps` does, changes nothing.
    """
    function = getattr(resolve(name.owner), name.attribute, None)
    return callable(function) and parameters_of(function) in (name.parameters or "").split(" | ")


def parameters_of(function: Any) -> str:
    """Return the names of a function's parameters, with spaces between; of the original if it is wrapped."""
    return " ".join(inspect.signature(inspect.unwrap(function)).parameters)


def _of(owner: str, *names: Name) -> tuple[Name, ...]:
    """Return names of one owner."""
    return tuple(replace(name, owner=owner) for name in names)


READ, WRITE, CALL = Kind.READ, Kind.WRITE, Kind.CALL
OVERRIDE, COPIED, REPLACE = Kind.OVERRIDE, Kind.COPIED, Kind.REPLACE
TRANSPORT, POOL = Feature.TRANSPORT, Feature.POOL

SURFACE: tuple[Name, ...] = (
    *_of(
        "billiard.connection:Connection",
        Name("recv", WRITE, "prefork"),
        Name("_send", CALL, "prefork", "self buf write", feature=POOL),
    ),
    *_of(
        "billiard.pool:ApplyResult",
        Name("_job", READ, "prefork"),
        Name(
            "_payload",
            WRITE,
            "prefork",
            seen_in="celery.concurrency.asynpool:AsynPool._create_write_handlers",
        ),
        Name("_accepted", READ, "prefork"),
        Name("_write_to", READ, "prefork"),
        Name("_soft_timeout", WRITE, "prefork"),
        Name("_timeout", READ, "prefork"),
    ),
    *_of(
        "billiard.process:BaseProcess",
        Name("_is_alive", CALL, "prefork", "self"),
    ),
    *_of(
        "billiard.queues:_SimpleQueue",
        Name("put", WRITE, "prefork"),
        Name("_reader", READ, "prefork"),
        Name("_writer", READ, "prefork"),
    ),
    *_of(
        "celery._state",
        Name("_task_stack", CALL, "worker", ""),
    ),
    *_of(
        "celery.app.defaults",
        Name("DEFAULTS", WRITE, "compat"),
        Name("_OLD_DEFAULTS", WRITE, "compat"),
        Name("_TO_OLD_KEY", READ, "compat"),
    ),
    *_of(
        "celery.app.log:Logging",
        Name(
            "setup",
            OVERRIDE,
            "logging",
            "self loglevel logfile redirect_stdouts redirect_level colorize hostname",
        ),
        Name(
            "setup_handlers",
            OVERRIDE,
            "logging",
            "self logger logfile format colorize formatter datefmt kwargs",
        ),
    ),
    *_of(
        "celery.app.task:Context",
        Name(
            "_get_custom_headers",
            REPLACE,
            "compat",
            "self args kwargs",
            sha256="735b3a872952a9c9e38cb799140dfe849426ec0332d35db1c1c6df81880e6261",
        ),
    ),
    *_of(
        "celery.app.task:Task",
        Name("Strategy", OVERRIDE, "worker"),
        Name("__trace__", OVERRIDE, "worker"),
        Name("_get_exec_options", CALL, "compat", "self"),
    ),
    *_of(
        "celery.app.trace",
        Name("LOG_RECEIVED", REPLACE, "logging"),
        Name("LOG_SUCCESS", REPLACE, "logging"),
        Name(
            "saferepr",
            REPLACE,
            "compat",
            "o maxlen maxlevels seen",
            sha256="9dc581e29aeccef3fb21d15dac79d31f9b0e8f164b88134f1513abeb89e260b8",
        ),
        Name(
            "build_tracer",
            COPIED,
            "worker",
            sha256="fd40b27b6bda8ce57724724cdd7a7382830e773a21cd0daebb9aa6476f124ffb",
        ),
    ),
    *_of(
        "celery.backends.redis:RedisBackend",
        Name("ResultConsumer", OVERRIDE, "worker"),
        Name(
            "client",
            COPIED,
            "worker",
            sha256="d13d1ea9a3cbdfe9e6b295c9a0113233e4262bc59ad5f9d72c75b105845faf79",
        ),
        Name("ensure", OVERRIDE, "worker", "self fun args policy"),
        Name("on_chord_part_return", OVERRIDE, "worker", "self request state result propagate kwargs"),
        Name("on_task_call", OVERRIDE, "worker", "self producer task_id"),
        Name("_chord_part_return_script", OVERRIDE, "worker", "self"),
        Name("_chord_claim_extend_script", OVERRIDE, "worker", "self"),
        Name("_chord_cleanup_script", OVERRIDE, "worker", "self"),
        Name(
            "_store_result",
            COPIED,
            "worker",
            sha256="53e3e1e9911e32c03ad04b5f521069a0da74bae10f78f213b5d9893a156a4fe1",
        ),
        Name("_create_client", CALL, "worker", "self params"),
        Name("_get_result_meta", CALL, "worker", "self result state traceback request format_date encode"),
        Name("_MAX_STR_VALUE_SIZE", READ, "worker"),
    ),
    *_of(
        "celery.backends.redis:ResultConsumer",
        Name("__init__", OVERRIDE, "worker", "self args kwargs"),
        Name("start", OVERRIDE, "worker", "self initial_task_id kwargs"),
        Name("on_after_fork", OVERRIDE, "worker", "self"),
        Name("on_wait_for_pending", OVERRIDE, "worker", "self result kwargs"),
        Name("drain_events_until", OVERRIDE, "worker", "self p timeout on_interval"),
        Name(
            "on_state_change",
            REPLACE,
            "transport",
            "self meta message",
            sha256="39b009a298e14583c3b3e5b6f639311495124a022b7a38dab281a0e2d6284143",
        ),
        Name(
            "_drain_one",
            REPLACE,
            "transport",
            "self pubsub timeout",
            sha256="10c570336c07ac1562bebe9d088ce507825a5938fb356bfac2014d0699024d23",
        ),
        Name("_consume_from", OVERRIDE, "worker", "self task_id"),
        Name("_reconnect_pubsub", OVERRIDE, "worker", "self"),
        Name("_locked", CALL, "worker", "self"),
        Name("_get_key_for_task", READ, "worker"),
        Name("_decode_result", READ, "worker"),
        Name("_pubsub", READ, "worker"),
    ),
    *_of(
        "celery.beat:Scheduler",
        Name(
            "tick",
            REPLACE,
            "beat",
            "self event_t min heappop heappush",
            sha256="ee76ecb6f0f54b0b02c1c6f1f94b1e186c1140de4c073d7597aa90e7e3538504",
        ),
        Name(
            "apply_async",
            REPLACE,
            "beat",
            "self entry producer advance kwargs",
            sha256="5ab3de4e32c0305bc06e65b1308165be92ca80be33a44f2acee059f6085935d8",
        ),
    ),
    *_of(
        "celery.concurrency.asynpool",
        Name("gen_not_started", CALL, "prefork", "gen"),
        Name("_get_job_writer", CALL, "prefork", "job"),
    ),
    *_of(
        "celery.concurrency.asynpool:AsynPool",
        Name("Worker", OVERRIDE, "prefork"),
        Name("ResultHandler", OVERRIDE, "prefork"),
        Name("flush", OVERRIDE, "prefork", "self", feature=POOL),
        Name("close", OVERRIDE, "prefork", "self"),
        Name("create_process_queues", OVERRIDE, "prefork", "self"),
        Name("process_flush_queues", OVERRIDE, "prefork", "self proc", feature=POOL),
        Name("destroy_queues", OVERRIDE, "prefork", "self queues proc", feature=POOL),
        Name(
            "_event_process_exit",
            REPLACE,
            "prefork",
            "self hub proc",
            sha256="a8405bca6bf91b93f4b1a340dee3141391dd2f20aa8ef739c7aaec13ad937121",
        ),
        Name("_create_timelimit_handlers", OVERRIDE, "prefork", "self hub", feature=POOL),
        Name(
            "_create_write_handlers",
            COPIED,
            "prefork",
            "self hub pack dumps protocol",
            sha256="c7381a1afb8c8e9cbbcfe7c5413e14d642b88c6aa864d217a1c0b1e807746f20",
            feature=POOL,
        ),
        Name("_worker_active", OVERRIDE, "prefork", "self worker", feature=POOL),
        Name("_on_soft_timeout", CALL, "prefork", "self job soft hard hub", feature=POOL),
        Name("_on_hard_timeout", CALL, "prefork", "self job", feature=POOL),
        Name("_discard_tref", CALL, "prefork"),
        Name("_tref_for_id", READ, "prefork"),
        Name("_pool", READ, "prefork"),
        Name("_cache", READ, "prefork"),
        Name("_state", READ, "prefork"),
        Name("_result_handler", READ, "prefork"),
        Name("_all_inqueues", READ, "prefork"),
        Name("_busy_workers", READ, "prefork"),
        Name("_active_writes", READ, "prefork"),
        Name("_active_writers", READ, "prefork"),
        Name("_quick_put", WRITE, "prefork"),
        Name("on_poll_start", WRITE, "prefork"),
        Name("on_timeout_set", WRITE, "prefork"),
        Name("on_timeout_cancel", WRITE, "prefork"),
    ),
    *_of(
        "celery.concurrency.asynpool:ResultHandler",
        Name("__init__", OVERRIDE, "prefork", "self args kwargs"),
        Name(
            "_make_process_result",
            COPIED,
            "prefork",
            "self hub",
            sha256="351c738d4f81a19e0a5a1559e45e3ff694fa18baa2f7d53bd1c54f525b93ffb5",
            feature=POOL,
        ),
        Name(
            "_finish_partial_read",
            COPIED,
            "prefork",
            "self fd proc",
            sha256="e496fa82206bbb69ce701122762da345baf973886f1202532af6fd3547ed45bd",
            feature=POOL,
        ),
    ),
    *_of(
        "celery.concurrency.asynpool:Worker",
        Name("on_loop_start", OVERRIDE, "prefork", "self pid", feature=POOL),
        Name(
            "_make_recv_method",
            COPIED,
            "prefork",
            "self conn",
            sha256="caad9d11f0a22b3a162907ae52d567668ee693cc0f38f46273ed407f902aeac0",
            feature=POOL,
        ),
    ),
    *_of(
        "celery.concurrency.base",
        Name(
            "apply_target",
            REPLACE,
            "worker",
            "target args kwargs callback accept_callback pid getpid propagate monotonic _",
            sha256="64bb22332b3a4ef1432ff50103bbf12bb2f895abbfbcce5ffea89ea79746ffc7",
        ),
    ),
    *_of(
        "celery.concurrency.base:BasePool",
        Name("flush", READ, "recovery"),
    ),
    *_of(
        "celery.concurrency.gevent",
        Name(
            "apply_timeout",
            REPLACE,
            "worker",
            (
                "target args kwargs callback accept_callback getpid timeout timeout_callback Timeout "
                "apply_target rest"
            ),
            sha256="7ac7bbf68dd28fef27b978c7fb93b02a3b72472ca6fdd2ccec8a2c33427b861e",
        ),
    ),
    *_of(
        "celery.concurrency.prefork:TaskPool",
        Name("Pool", REPLACE, "bootstrap"),
    ),
    *_of(
        "celery.concurrency.solo",
        Name(
            "apply_target",
            REPLACE,
            "worker",
            "target args kwargs callback accept_callback pid getpid propagate monotonic _",
            sha256="64bb22332b3a4ef1432ff50103bbf12bb2f895abbfbcce5ffea89ea79746ffc7",
        ),
    ),
    *_of(
        "celery.concurrency.thread",
        Name(
            "apply_target",
            REPLACE,
            "worker",
            "target args kwargs callback accept_callback pid getpid propagate monotonic _",
            sha256="64bb22332b3a4ef1432ff50103bbf12bb2f895abbfbcce5ffea89ea79746ffc7",
        ),
    ),
    *_of(
        "celery.events.dispatcher:EventDispatcher",
        Name("buffer_group", WRITE, "worker"),
        Name("buffer_limit", WRITE, "worker"),
        Name("on_send_buffered", WRITE, "worker"),
    ),
    *_of(
        "celery.loaders.base:BaseLoader",
        Name("override_backends", WRITE, "bootstrap"),
    ),
    *_of(
        "celery.utils.collections:LimitedSet",
        Name("expires", WRITE, "worker"),
    ),
    *_of(
        "celery.utils.threads",
        Name("_LocalStack", READ, "compat"),
    ),
    *_of(
        "celery.utils.threads:_LocalStack",
        Name("_local", READ, "compat", seen_in="celery.utils.threads:_LocalStack.__init__"),
        Name(
            "push",
            REPLACE,
            "compat",
            "self obj",
            sha256="5ddf945d4ba598c4fad8019360edb1ec535d534c0b21d764e818622195de51eb",
        ),
        Name(
            "pop",
            REPLACE,
            "compat",
            "self",
            sha256="67baa074f5c517f63a846eb570c117bca90e9b6da374a015b6d2683d52d22d08",
        ),
        Name(
            "top",
            REPLACE,
            "compat",
            sha256="450e514379035f5692018cc05b99c6fcdc01df21fd22fd8fc2861adf0b51fb73",
        ),
    ),
    *_of(
        "celery.worker.consumer.consumer:Consumer",
        Name(
            "__init__",
            OVERRIDE,
            "worker",
            (
                "self on_task_request init_callback hostname pool app timer controller hub amqheartbeat "
                "worker_options disable_rate_limits initial_prefetch_count prefetch_multiplier kwargs"
            ),
        ),
        Name("start", OVERRIDE, "worker", "self"),
        Name("connect", OVERRIDE, "worker", "self"),
        Name("on_connection_error_after_connected", OVERRIDE, "worker", "self exc"),
        Name("on_connection_error_before_connected", OVERRIDE, "worker", "self exc"),
        Name("update_strategies", OVERRIDE, "worker", "self"),
        Name(
            "add_task_queue",
            COPIED,
            "worker",
            sha256="82d428548407c64c04cb071f8174b33a65437019115f90f0b54dceeee0e9b048",
        ),
        Name("on_close", OVERRIDE, "worker", "self"),
        Name("create_task_handler", OVERRIDE, "worker", "self promise"),
        Name("on_unknown_message", OVERRIDE, "worker", "self body message"),
        Name("on_unknown_task", OVERRIDE, "worker", "self body message exc"),
        Name("on_invalid_task", OVERRIDE, "worker", "self body message exc"),
        Name("on_decode_error", OVERRIDE, "worker", "self message exc"),
        Name("_limit_task", OVERRIDE, "worker", "self request bucket tokens"),
        Name("_limit_post_eta", OVERRIDE, "worker", "self request bucket tokens"),
        Name("_limit_move_to_pool", OVERRIDE, "worker", "self request"),
    ),
    *_of(
        "celery.worker.control",
        Name(
            "revoke",
            REPLACE,
            "worker",
            "state task_id terminate signal kwargs",
            sha256="afe167a0a2d54838ea00a8f5d53ba3325ccfc514ad2507c83cf6d3682bc8bbc3",
        ),
        Name(
            "terminate",
            REPLACE,
            "worker",
            "state signal task_id kwargs",
            sha256="c416ee5b8b0f0dc2d9415c42ae0ef55dbb849a1a42b814f60b3902e434faa0ef",
        ),
        Name(
            "revoke_by_stamped_headers",
            REPLACE,
            "worker",
            "state headers terminate signal kwargs",
            sha256="93a5e412b7be03573a2198f37a0a6107fc5265a05ed669b1811c5fac6429206a",
        ),
        Name(
            "add_consumer",
            REPLACE,
            "worker",
            "state queue exchange exchange_type routing_key options",
            sha256="6ca9c17efe04a2c86ec35a78f2e7b3d203bdeeb545a376ccb88fc31faa73af16",
        ),
        Name(
            "cancel_consumer",
            REPLACE,
            "worker",
            "state queue _",
            sha256="f9f2e7997f8502a56344890e3d9345e3b6e1c3418e89278b441157bc8fd1a70e",
        ),
        Name(
            "_revoke",
            REPLACE,
            "worker",
            "state task_ids terminate signal kwargs",
            sha256="ff1e7f0e28141b0230ecf453fee233b92538f6f7e420502e840a9c53e40d5e7d",
        ),
    ),
    *_of(
        "celery.worker.control:Panel",
        Name("data", WRITE, "worker"),
    ),
    *_of(
        "celery.worker.pidbox:Pidbox",
        Name(
            "on_message",
            REPLACE,
            "transport",
            "self body message",
            sha256="3d66b62448c8b5363bffbd6a54dc2d9fccf53d76d4820bdf7ae0403988f94182",
        ),
        Name("reset", CALL, "transport", "self"),
        Name("_forward_clock", READ, "transport"),
    ),
    *_of(
        "celery.worker.pidbox:gPidbox",
        Name(
            "loop",
            REPLACE,
            "recovery",
            "self c",
            sha256="3cb6124f30c616ff71c5120432c08e96846482a10398653a014ecb49ec895ffe",
        ),
        Name(
            "on_stop",
            REPLACE,
            "recovery",
            "self",
            sha256="25cae09f944ae055fdc64cd0d72be16f064d6a51f1dfa939ff2175170a69ba76",
        ),
        Name("_node_shutdown", WRITE, "recovery"),
        Name("_node_stopped", WRITE, "recovery"),
    ),
    *_of(
        "celery.worker.request",
        Name(
            "MemoryError",
            REPLACE,
            "worker",
            sha256="98f98c5f0542af2b0b177fe2bb3694213a6d9cba0eac1cf17f5f33b732cc97a1",
            seen_in="celery.worker.request:Request.on_failure",
        ),
    ),
    *_of(
        "celery.worker.request:Request",
        Name(
            "__init__",
            OVERRIDE,
            "worker",
            (
                "self message on_ack hostname eventer app connection_errors request_dict task on_reject "
                "body headers decoded utc maybe_make_aware maybe_iso8601 opts"
            ),
        ),
        Name("on_failure", OVERRIDE, "worker", "self exc_info send_failed_event return_ok"),
        Name("on_timeout", OVERRIDE, "worker", "self soft timeout"),
        Name("acknowledge", OVERRIDE, "worker", "self"),
        Name("reject", OVERRIDE, "worker", "self requeue"),
        Name("_announce_revoked", OVERRIDE, "worker", "self reason terminated signum expired"),
        Name("_success_was_stored", OVERRIDE, "worker", "self"),
        Name("_message", READ, "worker"),
        Name("_payload", READ, "worker"),
        Name("_request_dict", READ, "worker"),
        Name("_apply_result", READ, "recovery"),
        Name("_eta_timer_entry", READ, "recovery"),
        Name("_already_cancelled", READ, "worker"),
        Name("_already_revoked", WRITE, "recovery worker"),
        Name("acknowledged", WRITE, "worker"),
        Name("time_limits", WRITE, "worker"),
    ),
    *_of(
        "celery.worker.state",
        Name("revoked_stamps", WRITE, "worker"),
    ),
    *_of(
        "celery.worker.strategy",
        Name(
            "default",
            COPIED,
            "worker",
            sha256="571fb318589c876fc44d104692dde45767c37bed9279fa98bf3bd8b1ac61b66f",
        ),
    ),
    *_of(
        "celery.worker.worker:WorkController",
        Name(
            "_process_task",
            REPLACE,
            "worker",
            "self req",
            sha256="0ff0ceef0d1ded1299c607bc1019edebcf090b1dab8d3f9423809c7eb5e51840",
        ),
        Name("_quick_release", CALL, "worker", seen_in="celery.worker.components:Pool.create"),
    ),
    *_of(
        "kombu.asynchronous.hub:Hub",
        Name("consolidate_callback", WRITE, "prefork"),
        Name("_ready", READ, "transport"),
        Name("_pop_ready", CALL, "recovery", "self"),
    ),
    *_of(
        "kombu.connection:Connection",
        Name("alt", WRITE, "transport"),
    ),
    *_of(
        "kombu.message:Message",
        Name("_decoded_cache", READ, "compat"),
    ),
    *_of(
        "kombu.pidbox:Node",
        Name("handle_message", CALL, "transport", "self body message"),
        Name(
            "on_decode_error",
            REPLACE,
            "transport",
            "self message exc",
            sha256="d1a967733e9cf0049fe43e42d6137391220166c7306230cf4320d2badd940833",
        ),
    ),
    *_of(
        "kombu.transport",
        Name("TRANSPORT_ALIASES", WRITE, "bootstrap"),
    ),
    *_of(
        "kombu.transport.redis",
        Name("_socket_readable", CALL, "transport", "sock"),
    ),
    *_of(
        "kombu.transport.redis:Channel",
        Name("__init__", OVERRIDE, "transport", "self args kwargs"),
        Name("QoS", OVERRIDE, "transport"),
        Name("from_transport_options", OVERRIDE, "transport"),
        Name(
            "client",
            COPIED,
            "transport",
            sha256="f7d3bed91d63d600a0c8fff23e04d3374c4443f1f9fc690c0a2e18bcb164eb40",
        ),
        Name(
            "conn_or_acquire",
            COPIED,
            "transport",
            "self client",
            sha256="73c0765b5280564e4c06806fb1d7b476105c9928a94f6e80671f896f8a8f9f3a",
            feature=TRANSPORT,
        ),
        Name("basic_consume", OVERRIDE, "transport", "self queue args kwargs", feature=TRANSPORT),
        Name("active_queues", OVERRIDE, "transport", "self"),
        Name("maybe_refresh_binding_expiry", OVERRIDE, "transport", "self", feature=TRANSPORT),
        Name("close", OVERRIDE, "transport", "self", feature=TRANSPORT),
        Name(
            "_connparams",
            REPLACE,
            "recovery transport",
            "self asynchronous",
            sha256="ec0dc65b9428e4ee4a28f6a13223a042a840e443d8e33e79995bba5ce8a42257",
            feature=TRANSPORT,
        ),
        Name(
            "_queue_bind", OVERRIDE, "transport", "self exchange routing_key pattern queue", feature=TRANSPORT
        ),
        Name("_basic_cancel", OVERRIDE, "transport", "self consumer_tag", feature=TRANSPORT),
        Name(
            "_size",
            COPIED,
            "transport",
            "self queue",
            sha256="f2b9c57a7dd65853c2af2bc79ecff856f665ec1935a2aa04a0689ea6a49b30bc",
            feature=TRANSPORT,
        ),
        Name(
            "_receive",
            COPIED,
            "transport",
            "self",
            sha256="e5ad2d4d118a5ef68752f85198b1ccd707249844d81590ff55f833ad4efbbdc8",
            feature=TRANSPORT,
        ),
        Name(
            "_receive_one",
            REPLACE,
            "transport",
            "self c",
            sha256="c2164d78854678e2a97dab2abcac0dce8a9c6d999cbf17b72518b7e59fe9f280",
            feature=TRANSPORT,
        ),
        Name("_close_clients", OVERRIDE, "transport", "self", feature=TRANSPORT),
        Name("_on_connection_disconnect", OVERRIDE, "transport", "self connection", feature=TRANSPORT),
        Name("_create_client", CALL, "transport", "self asynchronous", feature=TRANSPORT),
        Name("_q_for_pri", CALL, "compat recovery transport", "self queue pri", feature=TRANSPORT),
        Name(
            "_get_message_priority",
            CALL,
            "compat recovery transport",
            "self message reverse",
            feature=TRANSPORT,
        ),
        Name(
            "_lookup",
            CALL,
            "compat recovery transport",
            "self exchange routing_key default",
            feature=TRANSPORT,
        ),
        Name("_update_queue_cycle", CALL, "transport", "self"),
        Name("_get_publish_topics", CALL, "transport", "self exchange routing_key"),
        Name("_handle_message", CALL, "transport", "self client r"),
        Name("_deliver_fanout_message", CALL, "transport", "self message exchange"),
        Name("_pool", READ, "transport"),
        Name("_closing", READ, "transport"),
        Name("_queue_cycle", READ, "transport"),
        Name("_active_queues", READ, "transport"),
        Name("_fanout_queues", WRITE, "transport"),
        Name("_fanout_to_queue", WRITE, "transport"),
        Name("_in_listen", WRITE, "transport"),
        Name("_brpop_sent_at", READ, "worker"),
    ),
    *_of(
        "kombu.transport.redis:MultiChannelPoller",
        Name("__init__", OVERRIDE, "transport", "self"),
        Name("get", OVERRIDE, "transport", "self callback timeout", feature=TRANSPORT),
        Name(
            "fds",
            COPIED,
            "transport",
            sha256="033cd96c1797342ff7a8e329e586de4bfb6d77b39327be16d8a697f8e8334f14",
        ),
        Name("handle_event", OVERRIDE, "transport", "self fileno event", feature=TRANSPORT),
        Name(
            "on_poll_start",
            COPIED,
            "transport",
            "self",
            sha256="7942846217955c13f23e587744b39bb11f58423079297f335d227b9f84350fbb",
            feature=TRANSPORT,
        ),
        Name("on_readable", OVERRIDE, "transport", "self fileno", feature=TRANSPORT),
        Name("maybe_restore_messages", OVERRIDE, "transport", "self", feature=TRANSPORT),
        Name(
            "maybe_check_brpop_health",
            COPIED,
            "transport",
            "self",
            sha256="94606b816b10e6b7a72879aafd3e98b571000e11e1b5cac1e29cab26d88d2452",
            feature=TRANSPORT,
        ),
        Name("_register", CALL, "transport", "self channel client type", feature=TRANSPORT),
        Name("_register_LISTEN", OVERRIDE, "transport", "self channel", feature=TRANSPORT),
        Name("_client_registered", CALL, "transport", "self channel client cmd", feature=TRANSPORT),
        Name("_channels", READ, "transport"),
        Name("_fd_to_chan", WRITE, "transport"),
        Name("_chan_to_sock", WRITE, "transport"),
    ),
    *_of(
        "kombu.transport.redis:QoS",
        Name("append", OVERRIDE, "recovery transport", "self message delivery_tag", feature=TRANSPORT),
        Name(
            "ack",
            COPIED,
            "recovery transport",
            "self delivery_tag",
            sha256="e327206e27ae8803262812b349d9b2abff756c8ede52a5662f97f7db05ee4064",
            feature=TRANSPORT,
        ),
        Name("reject", OVERRIDE, "recovery transport", "self delivery_tag requeue", feature=TRANSPORT),
        Name(
            "restore_by_tag",
            COPIED,
            "transport",
            "self tag client leftmost",
            sha256="da84a4be670b4345c96908ddf052721264440bc35afe8d59f440d60592bc93b2",
            feature=TRANSPORT,
        ),
        Name("restore_visible", OVERRIDE, "transport", "self start num interval", feature=TRANSPORT),
        Name("restore_unacked_once", OVERRIDE, "recovery", "self stderr"),
        Name("__class__", WRITE, "recovery"),
        Name("_flush", CALL, "transport", "self"),
        Name("_quick_append", CALL, "recovery"),
        Name("_quick_ack", CALL, "recovery"),
        Name("_delivered", READ, "recovery transport"),
        Name("_dirty", READ, "recovery"),
        Name("_on_collect", READ, "recovery"),
    ),
    *_of(
        "kombu.transport.redis:SentinelChannel",
        Name("from_transport_options", OVERRIDE, "transport"),
        Name("_sentinel_managed_pool", OVERRIDE, "transport", "self asynchronous", feature=TRANSPORT),
    ),
    *_of(
        "kombu.transport.redis:Transport",
        Name("__init__", OVERRIDE, "transport", "self args kwargs"),
        Name("Channel", OVERRIDE, "transport worker"),
        Name("default_port", OVERRIDE, "transport"),
        Name("register_with_event_loop", OVERRIDE, "transport", "self connection loop", feature=TRANSPORT),
        Name("cycle", WRITE, "transport"),
        Name("_deliver", CALL, "transport", "self message queue"),
    ),
    *_of(
        "kombu.transport.virtual.base:Message",
        Name("_raw", READ, "compat recovery transport worker"),
    ),
    *_of(
        "kombu.transport.virtual.base:QoS",
        Name("append", CALL, "transport", "self message delivery_tag"),
        Name("ack", CALL, "transport worker", "self delivery_tag"),
    ),
    *_of(
        "kombu.utils.functional",
        Name("sleep", REPLACE, "compat"),
    ),
    *_of(
        "redis._parsers.base:PushNotificationsParser",
        Name(
            "set_invalidation_push_handler",
            CALL,
            "transport",
            "self invalidation_push_handler_func",
            feature=TRANSPORT,
        ),
    ),
    *_of(
        "redis._parsers.hiredis:_HiredisParser",
        Name("_reader", READ, "transport"),
    ),
    *_of(
        "redis.client:PubSub",
        Name("is_health_check_response", CALL, "transport", "self response"),
        Name("health_check_response_counter", WRITE, "transport"),
        Name("handle_message", WRITE, "worker"),
    ),
    *_of(
        "redis.commands.core:Script",
        Name(
            "__call__",
            REPLACE,
            "broker",
            "self keys args client",
            sha256="2631d7f8352ffbace19ce3189909acdb1f9760aee5d706cb88c5f2671a71f0c2",
        ),
    ),
    *_of(
        "redis.connection:AbstractConnection",
        Name(
            "read_response",
            CALL,
            "transport",
            "self disable_decoding timeout disconnect_on_error push_request",
            feature=TRANSPORT,
        ),
        Name("can_read", CALL, "transport", "self timeout", feature=TRANSPORT),
        Name("send_packed_command", CALL, "transport", "self command check_health", feature=TRANSPORT),
        Name("pack_commands", CALL, "transport", "self commands", feature=TRANSPORT),
        Name("_parser", READ, "transport"),
    ),
    *_of(
        "redis.connection:Connection",
        Name("_sock", READ, "transport"),
    ),
)
