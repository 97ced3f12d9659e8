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
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fleet_runtime.compat.versions import OR_STANDARD, is_since, supported, unsupported
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
        owner: `module` or `module:Class`. A class may inherit the name.
        attribute: The name itself.
        kind: What the runtime does with it.
        rooms: The packages of the runtime that do so, with spaces between.
        parameters: Of a function: the names of its parameters, with spaces between. If verified versions
            differ, all of them, with ` | ` between. None if it is no function.
        hashes: Of what is replaced or copied: the first digits of the SHA-256 of the original's source,
            without indentation, empty lines and comments. Several if verified versions differ.
        feature: What is refused at start if the parameters are others.
        seen_in: `module:function` that assigns or uses the name, where its owner does not show it.
        bounds: Of a name that not all verified versions have: `+5.7` if its package has it since version 5.7,
            `-5.7` if its package has it, or the runtime uses it, before that version only.
    """

    owner: str
    attribute: str
    kind: Kind
    rooms: str
    parameters: str | None = None
    hashes: tuple[str, ...] = ()
    feature: Feature | None = None
    seen_in: str = ""
    bounds: str = ""

    def __str__(self) -> str:
        """Return the name with its owner."""
        return f"{self.owner}.{self.attribute}"

    @property
    def package(self) -> str:
        """The package that has the name."""
        return self.owner.partition(":")[0].partition(".")[0]

    @property
    def is_expected(self) -> bool:
        """Whether the runtime relies on the name with the installed version of its package."""
        if not self.bounds:
            return True
        return is_since(self.package, self.bounds[1:]) == self.bounds.startswith("+")


def require(feature: Feature) -> None:
    """Make sure that all names that a feature relies on are as verified.

    Raises:
        FleetError: Another package has replaced one.
    """
    for name in SURFACE:
        if name.feature is feature and name.is_expected and not has_parameters(name):
            raise FleetError(_replaced(name))


def problems(*, fast_pool: bool = True) -> Iterator[str]:
    """Yield why this process cannot have the level `full`, a sentence each.

    Names of modules that are imported for a kind of pool only count if the app has imported them.

    Args:
        fast_pool: Whether nodes have the runtime's pool, so that the names that it relies on count.
    """
    if sentence := unsupported():
        yield sentence
        return
    for name in SURFACE:
        checked = name.feature or (name.kind is Kind.REPLACE and name.parameters is not None)
        checked = checked and (fast_pool or name.feature is not Feature.POOL)
        checked = checked and name.is_expected
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
    return (
        f"Another package (the module {by}) has replaced {name}, and the level full relies on that of "
        f"{supported(name.package)}: remove what replaces it, {OR_STANDARD}"
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


def parse(table: str) -> Iterator[Name]:
    """Yield the names of a table in the format of TABLE.

    Raises:
        ValueError: A line has another format.
    """
    owner = ""
    for line in re.sub(r"\n {6,}", " ", table).strip().splitlines():
        if not line.startswith(" "):
            owner = line
            continue
        head, _, entries = line.partition(":")
        kind, rooms, *features = head.split()
        feature = Feature(features[0]) if features else None
        if ENTRY.sub("", entries).strip():
            raise ValueError(f"not an entry of {owner}: {entries}")
        for attribute, bounds, parameters, hashes, seen_in in ENTRY.findall(entries):
            yield Name(
                owner,
                attribute,
                Kind(kind),
                rooms.replace(",", " "),
                parameters[1:-1] if parameters else None,
                tuple(filter(None, hashes.split(","))),
                feature,
                seen_in,
                bounds,
            )


# An entry of a line: a name, and what follows it without a space.
ENTRY = re.compile(r"(\w+)([+-]\d+\.\d+)?(\([^)]*\))?(?:=([0-9a-f,]+))?(?:@(\S+))?")
# Below each owner are its names. A line begins with their kind, rooms and feature; six spaces continue a
# line. A name has its bounds, its parameters in brackets if it is a function, then `=` and its hashes, and
# `@` and the function that it is seen in. The docstring of Name has the meanings.
TABLE = """
billiard.connection:Connection
  write prefork: recv
  call prefork pool: _send(self buf write)
billiard.pool:ApplyResult
  read prefork: _job _timeout
  read compat,prefork: _accepted _write_to
  read compat: _scheduled_for
  write prefork: _payload@celery.concurrency.asynpool:AsynPool._create_write_handlers _soft_timeout
billiard.process:BaseProcess
  call compat,prefork: _is_alive(self)
billiard.queues:_SimpleQueue
  write prefork: put
  read prefork: _reader _writer
celery._state
  call worker: _task_stack()
celery.app.defaults
  write compat: DEFAULTS _OLD_DEFAULTS
  read compat: _TO_OLD_KEY
celery.app.log:Logging
  override logging: __init__(self app)
  override logging: setup(self loglevel logfile redirect_stdouts redirect_level colorize hostname)
  override logging: setup_handlers(self logger logfile format colorize formatter datefmt kwargs |
      self logger logfile format colorize formatter kwargs)
celery.app.task:Context
  replace compat: _get_custom_headers(self args kwargs)=735b3a872952
celery.app.task:Task
  override worker: Strategy __trace__
  call compat: _get_exec_options(self)
celery.app.trace
  replace logging: LOG_RECEIVED LOG_SUCCESS
  replace compat: saferepr(o maxlen maxlevels seen)=9dc581e29aec
  copied worker: build_tracer=fd40b27b6bda,9eac146370d8,9994fba878a5,0e00d1ff02d5
celery.backends.base:BaseKeyValueStoreBackend
  call compat: _get_task_meta_for(self task_id)
celery.backends.redis:RedisBackend
  override compat,worker: ResultConsumer
  override worker: ensure(self fun args policy)
  override worker: on_chord_part_return(self request state result propagate kwargs)
  override worker: on_task_call(self producer task_id) _chord_part_return_script+5.7(self)
  override worker: _chord_claim_extend_script+5.7(self) _chord_cleanup_script+5.7(self)
  copied worker: client=d13d1ea9a3cb
  copied worker: _store_result=53e3e1e9911e
  call worker: _create_client(self params)
  call worker: _get_result_meta(self result state traceback request format_date encode)
  read worker: _MAX_STR_VALUE_SIZE
celery.backends.redis:ResultConsumer
  override worker: __init__(self args kwargs) start(self initial_task_id kwargs) on_after_fork(self)
  override worker: on_wait_for_pending(self result kwargs) drain_events_until(self p timeout on_interval)
  override worker: _consume_from(self task_id) _reconnect_pubsub(self)
  replace transport: on_state_change(self meta message)=39b009a298e1
  replace compat: _drain_one+5.7(self pubsub timeout)=10c570336c07
  replace compat: drain_events-5.7(self timeout)=634b92f71deb
  call worker: _locked+5.7(self)
  read worker: _get_key_for_task _decode_result
  read compat,worker: _pubsub
celery.beat:Scheduler
  replace beat: tick(self event_t min heappop heappush)=ee76ecb6f0f5,08d36f0e764a
  replace beat: apply_async(self entry producer advance kwargs)=5ab3de4e32c0,9bd2cf042800
celery.concurrency.asynpool
  call prefork: gen_not_started(gen) _get_job_writer(job)
celery.concurrency.asynpool:AsynPool
  override prefork: Worker ResultHandler close(self) create_process_queues(self)
  override compat,prefork pool: flush(self)
  override prefork pool: process_flush_queues(self proc) destroy_queues(self queues proc)
  override prefork pool: _create_timelimit_handlers(self hub) _worker_active(self worker)
  override prefork pool: _event_process_exit(self hub proc)
  copied prefork pool: _create_write_handlers(self hub pack dumps protocol)=c7381a1afb8c,668d09a1e352
  call prefork pool: _on_soft_timeout(self job soft hard hub) _on_hard_timeout(self job)
  read prefork: _pool _state _result_handler _all_inqueues _active_writes _active_writers
  read compat,prefork: _cache _busy_workers
  write prefork: _quick_put on_poll_start on_timeout_set on_timeout_cancel
celery.concurrency.asynpool:ResultHandler
  override prefork: __init__(self args kwargs)
  copied prefork pool: _make_process_result(self hub)=351c738d4f81
  override compat: _flush_outqueue(self fd remove process_index on_state_change)
  copied compat,prefork pool: _finish_partial_read+5.7(self fd proc)=e496fa82206b
celery.concurrency.asynpool:Worker
  override prefork pool: on_loop_start(self pid)
  copied prefork pool: _make_recv_method(self conn)=caad9d11f0a2
celery.concurrency.base
  replace worker: apply_target(target args kwargs callback accept_callback pid getpid propagate monotonic
      _)=64bb22332b3a
celery.concurrency.base:BasePool
  read recovery: flush
celery.concurrency.gevent
  replace worker: apply_timeout(target args kwargs callback accept_callback getpid timeout timeout_callback
      Timeout apply_target rest)=7ac7bbf68dd2
celery.concurrency.prefork:TaskPool
  replace bootstrap: Pool
celery.concurrency.solo
  replace worker: apply_target(target args kwargs callback accept_callback pid getpid propagate monotonic
      _)=64bb22332b3a
celery.concurrency.thread
  replace worker: apply_target(target args kwargs callback accept_callback pid getpid propagate monotonic
      _)=64bb22332b3a
celery.events.dispatcher:EventDispatcher
  write worker: buffer_group buffer_limit on_send_buffered
celery.loaders.base:BaseLoader
  write bootstrap: override_backends
celery.utils.collections:LimitedSet
  write worker: expires
celery.utils.threads
  read compat: _LocalStack
celery.utils.threads:_LocalStack
  read compat: _local@celery.utils.threads:_LocalStack.__init__
  replace compat: push(self obj)=5ddf945d4ba5
  replace compat: pop(self)=67baa074f5c5
  replace compat: top=450e51437903
celery.worker.consumer.consumer:Consumer
  override worker: __init__(self on_task_request init_callback hostname pool app timer controller hub
      amqheartbeat worker_options disable_rate_limits initial_prefetch_count prefetch_multiplier kwargs)
  override compat,worker: on_connection_error_after_connected(self exc) create_task_handler(self promise)
  override worker: start(self) connect(self)
  override worker: on_connection_error_before_connected(self exc) update_strategies(self) on_close(self)
  override worker: on_unknown_message(self body message)
  override worker: on_unknown_task(self body message exc) on_invalid_task(self body message exc)
  override worker: on_decode_error(self message exc) _limit_task(self request bucket tokens)
  override worker: _limit_post_eta(self request bucket tokens) _limit_move_to_pool(self request)
  copied compat,worker: add_task_queue=82d428548407,dd68555de97a
celery.worker.control
  replace worker: revoke(state task_id terminate signal kwargs)=afe167a0a2d5
  replace worker: terminate(state signal task_id kwargs)=c416ee5b8b0f
  replace worker: revoke_by_stamped_headers(state headers terminate signal kwargs)=93a5e412b7be,c958f671168b
  replace worker: add_consumer(state queue exchange exchange_type routing_key options)=6ca9c17efe04
  replace worker: cancel_consumer(state queue _)=f9f2e7997f85
  replace worker: _revoke(state task_ids terminate signal kwargs)=ff1e7f0e2814,7ece4ca3843b,d8deb61d6268
celery.worker.control:Panel
  write worker: data
celery.worker.pidbox:Pidbox
  replace transport: on_message(self body message)=3d66b62448c8
  call transport: reset(self)
  read transport: _forward_clock
celery.worker.pidbox:gPidbox
  replace recovery: loop(self c)=3cb6124f30c6
  replace recovery: on_stop(self)=25cae09f944a
  write recovery: _node_shutdown _node_stopped
celery.worker.request
  replace worker: MemoryError=98f98c5f0542,0a0314f3cc56,acb180b7c429@celery.worker.request:Request.on_failure
celery.worker.request:Request
  override worker: __init__(self message on_ack hostname eventer app connection_errors request_dict task
      on_reject body headers decoded utc maybe_make_aware maybe_iso8601 opts)
  override compat,worker: on_failure(self exc_info send_failed_event return_ok)
  override worker: on_timeout(self soft timeout)
  override worker: acknowledge(self) reject(self requeue)
  override worker: _announce_revoked(self reason terminated signum expired)
  override compat,worker: _success_was_stored+5.7(self)
  read worker: _message _payload _request_dict
  read compat,worker: _already_cancelled
  read compat: _eta_timer_entry+5.7
  read recovery: _apply_result
  write compat,recovery,worker: _already_revoked
  write worker: acknowledged time_limits
celery.worker.state
  write worker: revoked_stamps
celery.worker.strategy
  copied worker: default=571fb318589c,1a3b0ed7cc57,e9fc032791d6
celery.worker.worker:WorkController
  replace worker: _process_task(self req)=0ff0ceef0d1d
  call worker: _quick_release@celery.worker.components:Pool.create
kombu.asynchronous.hub:Hub
  write prefork: consolidate_callback
  read transport: _ready
  call recovery: _pop_ready(self)
kombu.connection:Connection
  write transport: alt
kombu.message:Message
  read compat: _decoded_cache
kombu.pidbox:Node
  call transport: handle_message(self body message)
  replace transport: on_decode_error(self message exc)=d1a967733e9c
kombu.transport
  write bootstrap: TRANSPORT_ALIASES
kombu.transport.redis:Channel
  override transport,worker: QoS from_transport_options
  override transport: __init__(self args kwargs)
  override compat,transport: active_queues(self)
  copied transport: client=f7d3bed91d63
  copied transport transport: conn_or_acquire(self client)=73c0765b5280
  copied transport transport: _size(self queue)=f2b9c57a7dd6
  copied transport transport: _receive(self)=e5ad2d4d118a
  override transport transport: basic_consume(self queue args kwargs)
  override compat,transport transport: maybe_refresh_binding_expiry+5.7(self)
  override transport transport: close(self) _queue_bind(self exchange routing_key pattern queue)
  override transport transport: _basic_cancel(self consumer_tag) _close_clients(self)
  override transport transport: _on_connection_disconnect(self connection)
  replace compat,recovery,transport transport:
      _connparams(self asynchronous)=ec0dc65b9428,56b58af9bb68,42d261690a89,079db2f178a6,424e351f7a2b
  replace transport transport: _receive_one(self c)=c2164d788546,696cde2f2f62
  call transport transport: _create_client(self asynchronous)
  call compat,transport transport: _q_for_pri(self queue pri)
  call compat,transport transport: _get_message_priority(self message reverse)
  call compat,transport transport: _lookup(self exchange routing_key default)
  call transport: _update_queue_cycle(self) _handle_message(self client r)
  call transport: _get_publish_topics+5.7(self exchange routing_key)
  call compat: _get_publish_topic-5.7(self exchange routing_key)
  call compat: _deliver_fanout_message+5.7(self message exchange)
  read transport: _pool _closing _queue_cycle
  read compat,transport: _active_queues
  write compat,transport: _fanout_to_queue
  write transport: _fanout_queues _in_listen
  read worker: _brpop_sent_at+5.7
kombu.transport.redis:MultiChannelPoller
  override transport: __init__(self)
  override compat,transport transport: get(self callback timeout) handle_event(self fileno event)
  override compat,transport transport: on_readable(self fileno) maybe_restore_messages(self)
  override compat,transport: maybe_check_subclient_health(self)
  write compat: _in_protected_read _on_connection_disconnect
  override transport transport: _register_LISTEN(self channel)
  copied transport: fds=033cd96c1797,ccd9bbdfaee1
  copied transport transport: on_poll_start(self)=794284621795,05b09d7003c5
  copied compat,transport transport: maybe_check_brpop_health+5.7(self)=94606b816b10
  call transport transport: _register(self channel client type) _client_registered(self channel client cmd)
  read compat,transport: _channels
  write compat,transport: _fd_to_chan _chan_to_sock
kombu.transport.redis:QoS
  override recovery,transport transport: append(self message delivery_tag) reject(self delivery_tag requeue)
  copied recovery,transport transport: ack(self delivery_tag)=e327206e27ae
  copied transport transport: restore_by_tag(self tag client leftmost)=da84a4be670b
  override transport transport: restore_visible(self start num interval)
  override recovery: restore_unacked_once(self stderr)
  call transport: _flush(self)
  call recovery: _quick_append _quick_ack
  read recovery,transport: _delivered
  read recovery: _dirty _on_collect
kombu.transport.redis:SentinelChannel
  override transport,worker: from_transport_options
  override transport transport: _sentinel_managed_pool(self asynchronous)
kombu.transport.redis:Transport
  override transport: __init__(self args kwargs) default_port
  override transport,worker: Channel
  override compat,transport transport: register_with_event_loop(self connection loop)
  write transport: cycle
  call compat,transport: _deliver(self message queue)
kombu.transport.virtual.base:Message
  read compat,recovery,transport,worker: _raw
kombu.transport.virtual.base:QoS
  call transport: append(self message delivery_tag)
  call transport,worker: ack(self delivery_tag)
kombu.utils.functional
  replace compat: sleep
redis._parsers.base:PushNotificationsParser
  call compat transport: set_invalidation_push_handler+6.0(self invalidation_push_handler_func)
redis._parsers.hiredis
  read compat: NOT_ENOUGH_DATA
redis._parsers.hiredis:_HiredisParser
  read compat,transport: _reader
  read compat: _next_response-8.0
redis.client:PubSub
  call transport: is_health_check_response(self response)
  write transport: health_check_response_counter
  write worker: handle_message
redis.commands.core:Script
  replace broker: __call__(self keys args client)=2631d7f8352f,43ca7dca32c0
redis.connection:AbstractConnection
  call compat transport: read_response(self disable_decoding timeout disconnect_on_error push_request |
      self disable_decoding disconnect_on_error push_request)
  call compat,transport transport: can_read(self timeout)
  call transport transport: send_packed_command(self command check_health)
  call transport transport: pack_commands(self commands)
  read compat,transport: _parser
redis.connection:Connection
  read transport: _sock
"""
SURFACE = tuple(parse(TABLE))
