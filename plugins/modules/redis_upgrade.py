#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of an upgrade of Redis that Redis itself has to be asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_upgrade
short_description: Refuse to upgrade a Redis that is not fit for it, copy its data, and prove they are there
version_added: 0.1.0
description:
  - Each state is one step of an upgrade. A record on the host tells of the last one that was not proven, so
    an upgrade that was interrupted anywhere is finished by the next run.
options:
  state:
    description:
      - C(versions) tells which version the packages have, and which they should get. It fails if one of them
        is not installed, or is not in the archive in the version that is asked for. It changes nothing, loads
        no index from the network, and asks no Redis.
      - C(record) returns the record. Asks no Redis.
      - C(upgradable) fails with every reason why an upgrade might lose data, or might not end well.
      - C(snapshot) has Redis rewrite its append-only file, and copies it to a directory of root's. It
        writes two keys, one before the rewrite and one after it.
      - C(readable) fails if the C(redis-check-aof) that is installed cannot read the newest snapshot.
      - C(verified) fails unless the Redis that runs has loaded both keys, and with them all that was written
        before, and is the version that is installed. Then it removes the keys and the record.
    type: str
    choices: [versions, record, upgradable, snapshot, readable, verified]
    required: true
  packages:
    description: With C(versions), names of the packages. They are of one source, and are upgraded together.
    type: list
    elements: str
    default: []
  warn:
    description:
      - With C(versions), the playbook that installs a newer version. If the archive has one, warn, and say
        whether it is in the archive of security updates, and whether I(version) keeps the playbook from
        installing it. If the packages only are not as they should be, warn, too.
    type: str
    default: ""
  host: {description: "Name or address of Redis. Not for C(versions).", required: false}
  port: {description: "Its TLS port. Not for C(versions).", required: false}
  ca_file: {description: "CA certificate that the server's must chain to. Not for C(versions).", required:
    false}
  password: {description: "The user's password. Not for C(versions).", required: false}
  queues: {description: Queues whose messages are counted., type: list, elements: str, default: []}
  data_dir: {description: "Redis's directory. Not for C(versions).", type: path}
  snapshot_dir: {description: "Where snapshots and the record are. Not for C(versions).", type: path}
  keep: {description: How many snapshots stay., type: int, default: 2}
  version:
    description:
      - The version of the packages, for C(snapshot) the installed one, for C(verified) the wanted.
      - With C(versions), the one that they should have; the candidate of each, if it is empty.
    type: str
    default: ""
  memory_percent: {description: The part of C(maxmemory) that may be in use., type: int, default: 80}
  rewrite_timeout: {description: Seconds that a rewrite may take., type: int, default: 1800}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.redis
  - fleet.celery.redis.login
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: See whether there is a newer Redis
  fleet.celery.redis_upgrade:
    state: versions
    packages: [redis-server, redis-tools]
  register: versions

- name: Refuse to upgrade a Redis that is not fit for it
  fleet.celery.redis_upgrade:
    state: upgradable
    host: 127.0.0.1
    port: 6379
    ca_file: /etc/fleet/tls/ca.crt
    password: "{{ redis_passwords.admin }}"
    data_dir: /var/lib/redis
    snapshot_dir: /var/lib/redis-snapshots
"""

RETURN = r"""
record:
  description: Of the upgrade that is not proven yet, C(snapshot) (its path), C(from) (the version), C(taken)
    (when), and C(counts).
  returned: state is record or snapshot
  type: dict
packages:
  description: Packages of the version before, which are kept on the host.
  returned: state is record
  type: list
counts: {description: What Redis holds now., returned: state is snapshot or verified, type: dict}
installed: {description: The version that the first package has., returned: state is versions, type: str}
wanted: {description: The version that it should have., returned: state is versions, type: str}
due: {description: Whether a package has another version than it should., returned: state is versions, type:
  bool}
newest:
  description: The candidate of the first package, whatever I(version) asks for.
  returned: state is versions
  type: str
newer: {description: Whether a package is older than its candidate., returned: state is versions, type: bool}
security:
  description: Whether the archive of security updates has a package in a newer version.
  returned: state is versions
  type: bool
unfinished:
  description: Whether dpkg was interrupted while it installed one of them.
  returned: state is versions
  type: bool
older:
  description: Whether what is wanted is older than what is there, C(no), C(revision), or C(upstream) if the
    program itself is older.
  returned: state is versions
  type: str
targets: {description: "What to tell apt, C(name=version).", returned: state is versions, type: list,
  elements: str}
returns:
  description: What to tell apt to have the installed versions again; nothing if the archive has them no more.
  returned: state is versions
  type: list
  elements: str
"""

import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.fleet.celery.plugins.module_utils import redis_snapshot
from ansible_collections.fleet.celery.plugins.module_utils import runtime_keys as keys
from ansible_collections.fleet.celery.plugins.module_utils.debian_packages import (
    VersionError,
    decide,
    look,
    news,
    upstream,
)
from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file
from ansible_collections.fleet.celery.plugins.module_utils.fleet_keys import PRIORITIES, leases
from ansible_collections.fleet.celery.plugins.module_utils.redis_snapshot import SnapshotError
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import (
    StrangeServerError,
    login_arguments,
    redis,
    verified_login,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

# Written before the rewrite, so it is in the base; and after it, so it is among what was appended. Who has
# loaded both has loaded what came before them: Redis reads its files in order.
MARKS = ("fleet:upgrade:base", "fleet:upgrade:last")
SLACK = 64 * 1024**2  # bytes: what is appended while the rewrite runs
MIB = 1024**2


class UpgradeError(Exception):
    """The step cannot be done; the message says why."""


class Upgrade:
    """The Redis of this host, on the way to another version."""

    def __init__(self, params: Mapping[str, Any], *, check: bool = False) -> None:
        """Take the module's arguments; nothing is asked yet."""
        self.params = params
        self.check = check
        self.directory = Path(params["snapshot_dir"])
        self.file = self.directory / "pending.json"

    def client(self) -> Any:
        """Return a client that may administrate.

        Raises:
            UpgradeError: Redis cannot be asked.
        """
        try:
            return verified_login(self.params)
        except (StrangeServerError, OSError) as error:
            why = str(error) or f"no answer within {self.params['timeout']} s"
            raise UpgradeError(f"Redis cannot be asked: {why}") from None

    # --- the steps ---

    def record(self) -> dict[str, Any]:
        """Return what is known of an upgrade that was not proven."""
        record = json.loads(self.file.read_text()) if self.file.exists() else {}
        packages = sorted(str(path) for path in self.directory.glob("packages/*.deb"))
        return {"changed": False, "record": record, "packages": packages}

    def upgradable(self) -> dict[str, Any]:
        """Refuse what an upgrade might harm."""
        findings = [*unfit(self.client().info(), self.params["memory_percent"]), *self.small_disks()]
        if findings:
            raise UpgradeError("This Redis is not fit for an upgrade.\n- " + "\n- ".join(findings))
        return {"changed": False}

    def snapshot(self) -> dict[str, Any]:
        """Have the append-only file rewritten, and copy it."""
        name = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        target = self.directory / name
        client = self.client()
        counts = self.counts(client)
        before = self.record()["record"]
        record = {
            "snapshot": str(target),
            "from": before.get("from") or self.params["version"],
            "taken": name,
            "counts": counts,
        }
        if not self.check:
            source, manifest = self.files(client)
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            mark(client, MARKS[0], name)
            rewrite(client, self.params["rewrite_timeout"])
            mark(client, MARKS[1], name)
            redis_snapshot.take(source, manifest, target)
            redis_snapshot.check(target / source.name, manifest)
            redis_snapshot.prune(self.directory, self.params["keep"])
            self.write(record)
        return {"changed": True, "record": record, "counts": counts}

    def readable(self) -> dict[str, Any]:
        """Have the newest snapshot read by what is installed now."""
        snapshot = Path(self.record()["record"]["snapshot"])
        [files] = [path for path in snapshot.iterdir() if path.is_dir()]
        [manifest] = files.glob("*.manifest")
        redis_snapshot.check(files, manifest.name)
        return {"changed": False}

    def verified(self) -> dict[str, Any]:
        """Make sure that the Redis which runs has all that there was."""
        record = self.record()["record"]
        if not record:
            return {"changed": False, "record": {}, "counts": {}}
        client = self.client()
        try:
            info, found = client.info(), client.mget(MARKS)
        except redis.exceptions.RedisError as error:
            raise UpgradeError(f"Redis does not answer: {error}") from None
        problems = list(unproven(info, found, record["taken"], upstream(self.params["version"])))
        if problems:
            raise UpgradeError("\n".join(problems))
        counts = self.counts(client)
        if not self.check:
            client.delete(*MARKS)
            self.file.unlink()
        return {"changed": True, "record": record, "counts": counts}

    # --- what they need ---

    def files(self, client: Any) -> tuple[Path, str]:
        """Return the directory of the append-only files, and the name of their manifest."""
        config = client.config_get("append*")
        return Path(self.params["data_dir"], config["appenddirname"]), f"{config['appendfilename']}.manifest"

    def counts(self, client: Any) -> dict[str, int]:
        """Return what Redis holds: keys, messages that wait or that nodes have, and dead letters."""
        nodes = leases(client)
        pipeline = client.pipeline(transaction=False)
        pipeline.dbsize()
        pipeline.zcard(keys.DEAD)
        for queue in self.params["queues"]:
            for step in PRIORITIES:
                pipeline.llen(f"{queue}{step}")
        for node in nodes:
            pipeline.hlen(keys.unacked(node))
        size, dead, *messages = pipeline.execute()
        return {"keys": size, "messages": sum(messages), "dead letters": dead}

    def small_disks(self) -> Iterator[str]:
        """Find a disk without room for what the upgrade writes."""
        data, copies = Path(self.params["data_dir"]), existing(self.directory)
        needed = self.client().info("memory")["used_memory"] + SLACK
        elsewhere = data.stat().st_dev != copies.stat().st_dev
        for path, what in ((data, "rewrite"), (copies, "snapshot")) if elsewhere else ((data, "rewrite"),):
            free = shutil.disk_usage(path).free
            if free < needed:
                yield (
                    f"{path} has {free // MIB} MiB free, and the {what} of the append-only file may need "
                    f"{needed // MIB}. Make room; look at the snapshots in {self.directory}, for instance."
                )

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep the record, in one step."""
        replace_file(self.file, json.dumps(record))


def unfit(info: Mapping[str, Any], memory_percent: int) -> Iterator[str]:
    """Find what is wrong with a Redis, of what it says itself."""
    if info["role"] != "master":
        yield f"It is a {info['role']}. Upgrade it where it is the master, or remove it from the inventory."
    if info["loading"]:
        yield "It is loading its data. Wait until it has."
    if not info["aof_enabled"]:
        yield "Its append-only file is off. Run site.yml."
    if info["aof_last_write_status"] != "ok":
        yield "The last write to its append-only file failed (a full disk?): its memory has more."
    for what, state, command in (
        ("rewrite of its append-only file", info["aof_last_bgrewrite_status"], "BGREWRITEAOF"),
        ("save", info["rdb_last_bgsave_status"], "BGSAVE"),
    ):
        if state != "ok":
            yield f"Its last {what} failed. Its journal says why; mend that, and let it try again: {command}."
    if info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"] or info["rdb_bgsave_in_progress"]:
        yield "It is rewriting or saving its data. Wait until it has."
    used, limit = info["used_memory"], info["maxmemory"]
    if limit and used * 100 > limit * memory_percent:
        yield (
            f"It uses {used // MIB} of {limit // MIB} MiB, more than {memory_percent} %. Let the nodes empty "
            "its queues, or raise redis_maxmemory."
        )


def unproven(info: Mapping[str, Any], found: list[str | None], mark: str, version: str) -> Iterator[str]:
    """Find why a Redis may not have all that there was, or is not what it should be."""
    if info["role"] != "master":
        yield f"Redis is a {info['role']} now, and takes no writes."
    if info["redis_version"] != version:
        yield f"Redis {info['redis_version']} runs, and {version} is installed."
    if not info["aof_enabled"] or info["aof_last_write_status"] != "ok":
        yield "Its append-only file refuses writes."
    parts = ("what was there before", "what was written last")
    lost = [part for part, value in zip(parts, found, strict=True) if value != mark]
    if lost:
        yield f"Redis has not loaded {' and '.join(lost)}: its data are not those that the old one had."


def mark(client: Any, key: str, value: str) -> None:
    """Write a key as the nodes write: in a transaction."""
    client.pipeline(transaction=True).set(key, value).execute()


def rewrite(client: Any, timeout: int) -> None:
    """Have Redis rewrite its append-only file, and wait until it has.

    Raises:
        UpgradeError: It has not.
    """
    until = time.monotonic() + timeout
    client.bgrewriteaof()
    while True:
        info = client.info("persistence")
        if not (info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]):
            break
        if time.monotonic() > until:
            raise UpgradeError(f"The rewrite of the append-only file was not over after {timeout} s.")
        time.sleep(0.1)
    if info["aof_last_bgrewrite_status"] != "ok":
        raise UpgradeError("The rewrite of the append-only file failed; the journal of Redis says why.")


def existing(path: Path) -> Path:
    """Return a path, or the nearest directory above it that there is."""
    return next(one for one in (path, *path.parents) if one.exists())


def versions(module: AnsibleModule) -> dict[str, Any]:
    """Return what the state `versions` returns, and warn of a newer version."""
    params = module.params
    try:
        result = decide(look(params["packages"]), params["version"])
    except VersionError as error:
        module.fail_json(msg=str(error))
    said = news(result, params["packages"][0], params["version"], params["warn"]) if params["warn"] else ""
    if said:
        module.warn(said)
    return result


def main() -> None:
    """Run the module."""
    steps = ("record", "upgradable", "snapshot", "readable", "verified")
    connection = {name: {**option, "required": False} for name, option in login_arguments().items()}
    needed = ["host", "port", "ca_file", "password", "data_dir", "snapshot_dir"]
    module = AnsibleModule(
        argument_spec={
            **connection,
            "state": {"type": "str", "choices": ["versions", *steps], "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "warn": {"type": "str", "default": ""},
            "queues": {"type": "list", "elements": "str", "default": []},
            "data_dir": {"type": "path"},
            "snapshot_dir": {"type": "path"},
            "keep": {"type": "int", "default": 2},
            "version": {"type": "str", "default": ""},
            "memory_percent": {"type": "int", "default": 80},
            "rewrite_timeout": {"type": "int", "default": 1800},
        },
        required_if=[("state", "versions", ["packages"]), *(("state", step, needed) for step in steps)],
        supports_check_mode=True,
    )
    if module.params["state"] == "versions":
        module.exit_json(**versions(module))
    if redis is None:
        module.fail_json(msg=missing_required_lib("redis"))
    upgrade = Upgrade(module.params, check=module.check_mode)
    try:
        result = getattr(upgrade, module.params["state"])()
    except (UpgradeError, SnapshotError, redis.exceptions.RedisError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
