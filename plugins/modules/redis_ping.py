#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a Redis whether it is healthy, whether it may be restarted, and which passwords it takes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_ping
short_description: Check over TLS that a Redis is healthy, may be restarted, or takes the right passwords
version_added: 0.1.0
description:
  - Verifies the certificate of the server before it sends a password. Changes nothing.
  - Passwords are in no message.
options:
  check:
    description:
      - C(healthy) waits until Redis is. Logs in as a user that may only C(PING) and ask for the C(ROLE),
        then as one that may read C(INFO). Healthy is a master that answers, is not loading, whose
        append-only file took the last write, and that has the functions which its clients call. If it is
        not in time, the message ends with the journal of its unit.
      - C(writable) fails if Redis answers and its append-only file refuses writes, since a restart would then
        lose what only memory holds. It asks once. A Redis that does not answer passes.
      - C(logins) fails unless Redis takes each password of I(accepted), and none of I(refused).
    type: str
    choices: [healthy, writable, logins]
    default: healthy
  health_user: {description: User for PING and ROLE., type: str, default: health}
  health_password: {description: "Its password. Needed for C(healthy).", type: str}
  admin_user: {description: User for INFO., type: str, default: admin}
  admin_password: {description: "Its password. Needed for C(healthy) and C(writable).", type: str}
  previous_passwords:
    description: Passwords that users had before, while those are being replaced, by user. A Redis that only
      takes these is healthy, too.
    type: dict
    default: {}
  certificate: {description: File of the certificate that Redis must show., type: path, default: ""}
  libraries:
    description: Names of the libraries of functions that it must have.
    type: list
    elements: str
    default: []
  unit: {description: The systemd unit., type: str, default: redis-server.service}
  retries: {description: How often an unhealthy Redis is asked again., type: int, default: 30}
  delay: {description: Seconds between two questions., type: int, default: 1}
  accepted:
    description: Passwords that Redis should take, by user, in as many mappings as a user has passwords.
    type: list
    elements: dict
    default: []
  refused: {description: "Passwords that it should not take, by user.", type: dict, default: {}}
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
  - fleet.celery.redis
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Wait until Redis is healthy
  fleet.celery.redis_ping:
    host: 127.0.0.1
    port: 6379
    ca_file: /etc/fleet/tls/ca.crt
    health_password: "{{ redis_passwords.health }}"
    admin_password: "{{ redis_passwords.admin }}"

- name: Require that the new password of the workers is the only one
  fleet.celery.redis_ping:
    check: logins
    host: 127.0.0.1
    port: 6379
    ca_file: /etc/fleet/tls/ca.crt
    accepted: [{worker: "{{ new }}"}]
    refused: {worker: "{{ old }}"}
"""

RETURN = r"""
role: {description: "C(master), if it is healthy.", returned: check is healthy, type: str}
accepted:
  description: Users with a password that Redis takes.
  returned: check is logins
  type: list
  elements: str
refused:
  description: Users with a password that it refuses.
  returned: check is logins
  type: list
  elements: str
"""

import time
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.fleet.celery.plugins.module_utils.certificates import certificate_of
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import journal
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import (
    StrangeServerError,
    connection_arguments,
    login,
    login_with_one_of,
    redis,
    served_certificate,
)

if TYPE_CHECKING:
    from typing import Any, NoReturn


class UnhealthyError(Exception):
    """Redis is not well; the message says in which way."""


class NoAnswerError(UnhealthyError):
    """Redis cannot be asked."""


class Patient:
    """A Redis, asked with a new connection each time."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Take the module's arguments."""
        self.params = params
        self.place = (params["host"], params["port"], params["ca_file"], params["timeout"])
        self.shown = b""  # the certificate, once it was asked

    def client(self, kind: str) -> Any:
        """Return a client that is logged in as the user for `health` or `admin`."""
        user, password = self.params[f"{kind}_user"], self.params[f"{kind}_password"]
        passwords = [one for one in (password, self.params["previous_passwords"].get(user)) if one]
        try:
            self.shown = served_certificate(*self.place)
            return login_with_one_of(*self.place, user=user, passwords=passwords)
        except StrangeServerError as reason:
            raise NoAnswerError(str(reason)) from None
        except (redis.exceptions.RedisError, OSError) as error:
            raise NoAnswerError(str(error) or f"no answer within {self.params['timeout']} s") from None

    def examine(self) -> str:
        """Return the role of a Redis that is well.

        Raises:
            UnhealthyError: It is not.
        """
        try:
            role: str = self.client("health").execute_command("ROLE")[0]
        except redis.exceptions.RedisError as error:
            raise UnhealthyError(str(error)) from None
        if role != "master":
            raise UnhealthyError(f"it is a {role}, and takes no writes")
        persistence = self.persistence()
        if persistence["loading"]:
            raise UnhealthyError("it is loading its data")
        if not persistence["aof_enabled"]:
            raise UnhealthyError("its append-only file is off")
        self.refuse_missing_functions()
        self.refuse_other_certificate()
        return role

    def refuse_missing_functions(self) -> None:
        """Refuse a Redis that lacks a library of functions."""
        if not self.params["libraries"]:
            return
        try:
            found = self.client("admin").execute_command("FUNCTION LIST")
        except redis.exceptions.RedisError as error:
            raise UnhealthyError(str(error)) from None
        there = {one["library_name"] if isinstance(one, dict) else one[1] for one in found}
        if missing := [name for name in self.params["libraries"] if name not in there]:
            raise UnhealthyError(
                f"it lacks {len(missing)} of the functions that the fleet's processes call, such as "
                f"{missing[0]}, and tasks fail with NoPermissionError. Load them by `fleet-redis-functions "
                "load` on its host, or by playbooks/redis.yml"
            )

    def refuse_other_certificate(self) -> None:
        """Refuse a Redis that shows another certificate than it should."""
        file = self.params["certificate"]
        try:
            if file and certificate_of(file) != self.shown:
                raise UnhealthyError(f"it does not show the certificate in {file}; site.yml has it read that")
        except (OSError, ValueError) as error:
            raise UnhealthyError(str(error)) from None

    def persistence(self) -> dict[str, Any]:
        """Return what INFO tells of persistence, if the append-only file takes writes."""
        client = self.client("admin")
        try:
            found: dict[str, Any] = client.info("persistence")
        except redis.exceptions.RedisError as error:
            raise NoAnswerError(str(error)) from None
        if found["aof_last_write_status"] != "ok":
            raise UnhealthyError(
                "its append-only file refuses writes (a full disk?), so it refuses writes too"
            )
        return found


def wait(patient: Patient, retries: int, delay: int) -> str:
    """Return the role of Redis as soon as it is well.

    Raises:
        UnhealthyError: It never was.
    """
    while True:
        try:
            return patient.examine()
        except UnhealthyError:
            if retries == 0:
                raise
        retries -= 1
        time.sleep(delay)


def refuse_unwritable(patient: Patient) -> None:
    """Refuse a Redis that answers and cannot write its append-only file."""
    try:
        patient.persistence()
    except NoAnswerError:
        return
    except UnhealthyError as problem:
        raise UnhealthyError(
            f"{problem}. A restart would lose what only its memory holds: make room first."
        ) from None


def takes(place: tuple[str, int, str, int], user: str, password: str) -> bool:
    """Return whether a Redis lets a user in with a password."""
    try:
        login(*place, user=user, password=password).close()
    except StrangeServerError:
        return False
    return True


def wrong_logins(params: dict[str, Any]) -> list[str]:
    """Return a sentence for each password that is not taken or refused as it should be.

    Raises:
        StrangeServerError: It is no server that one may send a password to.
        TimeoutError: It does not answer.
    """
    place = (params["host"], params["port"], params["ca_file"], params["timeout"])
    served_certificate(*place)
    found = [
        f"It does not take a password of user {user} that it should."
        for passwords in params["accepted"]
        for user, password in passwords.items()
        if not takes(place, user, str(password))
    ]
    return found + [
        f"It still takes the old password of user {user}."
        for user, password in params["refused"].items()
        if takes(place, user, str(password))
    ]


def check_health(module: AnsibleModule) -> dict[str, Any]:
    """Wait until Redis is healthy, and return its role."""
    params = module.params
    try:
        return {"role": wait(Patient(params), params["retries"], params["delay"])}
    except UnhealthyError as problem:
        return fail(module, problem)


def check_writable(module: AnsibleModule) -> dict[str, Any]:
    """Fail if Redis answers, and cannot write its append-only file."""
    try:
        refuse_unwritable(Patient(module.params))
    except UnhealthyError as problem:
        return fail(module, problem)
    return {}


def fail(module: AnsibleModule, problem: UnhealthyError) -> NoReturn:
    """Fail with a problem, and the journal of Redis."""
    host, port, unit = (module.params[name] for name in ("host", "port", "unit"))
    told = journal(module.run_command, unit)
    module.fail_json(msg=f"Redis at {host}:{port} is not well: {problem}\n--- journal of {unit} ---\n{told}")
    raise AssertionError  # not reached


def check_logins(module: AnsibleModule) -> dict[str, Any]:
    """Fail unless Redis takes the passwords that it should, and no other; return whose those are."""
    params = module.params
    where = f"Redis at {params['host']}:{params['port']}"
    try:
        found = wrong_logins(params)
    except (StrangeServerError, redis.exceptions.RedisError, OSError) as error:
        module.fail_json(msg=f"{where}: {error or 'no answer in time'}")
    if found:
        module.fail_json(msg=f"{where}: {' '.join(found)}")
    return {
        "accepted": sorted({user for one in params["accepted"] for user in one}),
        "refused": sorted(params["refused"]),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **connection_arguments(),
            "check": {"type": "str", "choices": ["healthy", "writable", "logins"], "default": "healthy"},
            "health_user": {"type": "str", "default": "health"},
            "health_password": {"type": "str", "no_log": True},
            "admin_user": {"type": "str", "default": "admin"},
            "admin_password": {"type": "str", "no_log": True},
            "previous_passwords": {"type": "dict", "default": {}, "no_log": True},
            "certificate": {"type": "path", "default": ""},
            "libraries": {"type": "list", "elements": "str", "default": []},
            "unit": {"type": "str", "default": "redis-server.service"},
            "retries": {"type": "int", "default": 30},
            "delay": {"type": "int", "default": 1},
            "accepted": {"type": "list", "elements": "dict", "default": [], "no_log": True},
            "refused": {"type": "dict", "default": {}, "no_log": True},
        },
        required_if=[
            ("check", "healthy", ["health_password", "admin_password"]),
            ("check", "writable", ["admin_password"]),
            ("check", "logins", ["accepted"]),
        ],
        supports_check_mode=True,
    )
    if redis is None:
        module.fail_json(msg=missing_required_lib("redis"))
    checks = {"healthy": check_health, "writable": check_writable, "logins": check_logins}
    module.exit_json(changed=False, **checks[module.params["check"]](module))


if __name__ == "__main__":
    main()
