#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a running Redis in line with its files, without a restart where it can be done without one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_live
short_description: Bring a running Redis in line with its configuration, ACL users and certificate
version_added: 0.1.0
description:
  - Compares what the server says of itself with what redis.conf and users.acl say, and sets what differs.
    Nothing is remembered from the last run, so a play that was interrupted is finished by the next one.
  - A scratch server without port and data reads redis.conf, and its configuration is the one wanted. So a
    directive that was taken out of the file, or set by hand, goes back to its default.
  - A user that changed is set alone, since C(ACL LOAD) of Redis 7.0 cuts the connections of all users.
  - The files of the certificate are read again at every run. Which chain a server has in memory cannot be
    asked.
  - Directives that cannot be set in a running server are returned in I(restart_required).
  - A server that cannot be logged in to safely (another certificate authority, another password of the
    administrator, another port, no TLS) is left alone. It needs a restart to read its files.
  - Check mode changes nothing that anybody could notice. Each directive that differs is set to the value
    that it has, which tells whether it could be set. And in either mode users that nobody can log in as are
    made, listed and removed, since only the server can compare two spellings of a user's rights.
options:
  user: {description: User that may administrate., type: str, required: true}
  password: {description: Its password., type: str, required: true}
  previous_password:
    description: The one before it, while that is being replaced. It is tried first, for a server that does
      not know the new one yet.
    type: str
    default: ""
  config: {description: Text of redis.conf., type: str, required: true}
  acl: {description: Text of users.acl., type: str, required: true}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.redis
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Apply what Redis can take live
  fleet.celery.redis_live:
    host: 127.0.0.1
    port: 6379
    ca_file: /etc/fleet/tls/ca.crt
    user: admin
    password: "{{ redis_passwords.admin }}"
    config: "{{ lookup('ansible.builtin.template', 'redis.conf.j2') }}"
    acl: "{{ lookup('ansible.builtin.template', 'users.acl.j2') }}"
  no_log: true
  register: live
"""

RETURN = r"""
applied:
  description: What was changed in the running server, or would be in check mode.
  returned: always
  type: list
  elements: str
restart_required:
  description: Why the server must be restarted to be as its files say.
  returned: always
  type: list
  elements: str
"""

from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.fleet.celery.plugins.module_utils.certificates import certificate_of
from ansible_collections.fleet.celery.plugins.module_utils.redis_desired import (
    acl_changes,
    candidates,
    config_changes,
    parse_acl,
    wanted_config,
)
from ansible_collections.fleet.celery.plugins.module_utils.redis_scratch import scratch_config
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import (
    StrangeServerError,
    connection_arguments,
    login_with_one_of,
    redis,
    served_certificate,
)

if TYPE_CHECKING:
    from typing import Any

# Their content counts, not their name, so they are set together and at every run.
TLS_FILES = ("tls-cert-file", "tls-key-file", "tls-ca-cert-file")


class RefusedError(Exception):
    """The server refused a change; the message has its own words."""


class Live:
    """A running server, and what was done to it."""

    def __init__(self, client: Any, *, check: bool) -> None:
        """Take a client that is logged in as a user that may administrate."""
        self.client = client
        self.check = check
        self.applied: list[str] = []
        self.restart_required: list[str] = []

    def apply_config(self, wanted: dict[str, str]) -> None:
        """Set the directives that differ."""
        live = self.client.config_get("*")
        for name, value in config_changes(wanted, live).items():
            change = f"{name}: {live[name]!r} -> {value!r}"
            if not self.set_directive(name, live[name] if self.check else value):
                self.restart_required.append(change)
            elif (
                self.check or self.client.config_get(name)[name] != live[name]
            ):  # else two spellings of one value
                self.applied.append(change)

    def set_directive(self, name: str, value: str) -> bool:
        """Set a directive.

        Returns:
            Whether a running server can be told.
        """
        try:
            self.client.config_set(name, value)
        except redis.exceptions.ResponseError as error:
            if "immutable config" in str(error) or "protected config" in str(error):
                return False
            raise RefusedError(f"Redis refuses {name} {value!r}: {error}") from None
        return True

    def apply_certificate(self, files: dict[str, str], served: bytes) -> None:
        """Have the server read its certificate, key and CA again."""
        if certificate_of(files["tls-cert-file"]) != served:
            self.applied.append(f"certificate: {files['tls-cert-file']}")
        if self.check:
            return
        arguments = [word for pair in files.items() for word in pair]
        try:
            self.client.execute_command("CONFIG SET", *arguments)
        except redis.exceptions.ResponseError as error:
            raise RefusedError(f"Redis does not take {', '.join(files.values())}: {error}") from None

    def apply_acl(self, wanted: dict[str, list[str]]) -> None:
        """Set the users that differ, each in one step, and remove those that are in no file."""
        changed, surplus = acl_changes(wanted, self.list_users(candidates(wanted)))
        for name, rules in changed.items():
            if not self.check:
                self.set_user(name, rules)
            self.applied.append(f"user {name}")
        for name in surplus:
            if not self.check:
                self.client.execute_command("ACL DELUSER", name)
            self.applied.append(f"user {name}: removed")

    def list_users(self, extra: dict[str, list[str]]) -> dict[str, list[str]]:
        """Return the rules of each user as the server prints them, with some that exist for this only."""
        try:
            for name, rules in extra.items():
                self.set_user(name, rules)
            users: dict[str, list[str]] = parse_acl(self.client.execute_command("ACL LIST"))
        finally:
            self.client.execute_command("ACL DELUSER", *extra)
        return users

    def set_user(self, name: str, rules: list[str]) -> None:
        """Give a user these rules and no others."""
        try:
            self.client.execute_command("ACL SETUSER", name, "reset", *rules)
        except redis.exceptions.ResponseError as error:
            raise RefusedError(f"Redis refuses a rule of user {name}: {error}") from None


def apply(params: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Do what can be done live, and return the module's result."""
    place = (params["host"], params["port"], params["ca_file"], params["timeout"])
    try:
        served = served_certificate(*place)
        passwords = [one for one in (params["previous_password"], params["password"]) if one]
        client = login_with_one_of(*place, user=params["user"], passwords=passwords)
    except StrangeServerError as reason:
        why = f"{params['host']}:{params['port']}: {reason}"
        return {"changed": False, "applied": [], "restart_required": [why]}
    except TimeoutError:
        # hung or overloaded: a restart would hide the cause, and take long if it loads its data again
        raise RefusedError(
            f"Redis at {params['host']}:{params['port']} did not answer within {params['timeout']} s"
        ) from None
    config = wanted_config(params["config"], scratch_config(params["config"]))
    files = {name: config.pop(name) for name in TLS_FILES}
    live = Live(client, check=check)
    live.apply_config(config)
    live.apply_certificate(files, served)
    live.apply_acl(parse_acl(params["acl"].splitlines()))
    return {
        "changed": bool(live.applied),
        "applied": live.applied,
        "restart_required": live.restart_required,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **connection_arguments(),
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "previous_password": {"type": "str", "default": "", "no_log": True},
            "config": {"type": "str", "required": True},
            "acl": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    if redis is None:
        module.fail_json(msg=missing_required_lib("redis"))
    try:
        result = apply(module.params, check=module.check_mode)
    except (RefusedError, redis.exceptions.RedisError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
