#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a Redis which passwords it takes, by logging in with each."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: redis_logins
short_description: Fail unless a Redis takes each password that it should, and none that it should not
description:
  - Logs in over TLS once with each password, and changes nothing.
  - A failure names users and no password.
options:
  host: {description: Address that Redis listens on., type: str, required: true}
  port: {description: Its TLS port., type: int, required: true}
  ca_file: {description: CA certificate that the server's must chain to., type: path, required: true}
  timeout: {description: Seconds to wait for one answer., type: int, default: 10}
  taken:
    description: Passwords that Redis should take, by user, in as many mappings as a user has passwords.
    type: list
    elements: dict
    required: true
  refused: {description: Passwords that it should not take, by user., type: dict, default: {}}
author: celery-fleet
requirements: [python3-redis]
"""

EXAMPLES = r"""
- name: Require that the new password of the workers is the only one
  fleet.celery.redis_logins:
    host: 127.0.0.1
    port: 6379
    ca_file: /etc/fleet/tls/ca.crt
    taken: [{worker: "{{ new }}"}]
    refused: {worker: "{{ old }}"}
"""

RETURN = r"""
taken: {description: Users with a password that Redis takes., returned: success, type: list, elements: str}
refused: {description: Users with a password that it refuses., returned: success, type: list, elements: str}
"""

from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import (
    StrangeServerError,
    connection_arguments,
    login,
    redis,
    served_certificate,
)

if TYPE_CHECKING:
    from typing import Any


def takes(place: tuple[str, int, str, int], user: str, password: str) -> bool:
    """Return whether a Redis lets a user in with a password."""
    try:
        login(*place, user=user, password=password).close()
    except StrangeServerError:
        return False
    return True


def problems(params: dict[str, Any]) -> list[str]:
    """Return what is otherwise than it should be, a sentence each.

    Raises:
        StrangeServerError: It is no server that one may send a password to.
        TimeoutError: It does not answer.
    """
    place = (params["host"], params["port"], params["ca_file"], params["timeout"])
    served_certificate(*place)
    found = [
        f"It does not take a password of user {user} that it should."
        for passwords in params["taken"]
        for user, password in passwords.items()
        if not takes(place, user, str(password))
    ]
    return found + [
        f"It still takes the old password of user {user}."
        for user, password in params["refused"].items()
        if takes(place, user, str(password))
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **connection_arguments(),
            "taken": {"type": "list", "elements": "dict", "required": True, "no_log": True},
            "refused": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    if redis is None:
        module.fail_json(msg=missing_required_lib("redis"))
    params = module.params
    where = f"Redis at {params['host']}:{params['port']}"
    try:
        found = problems(params)
    except (StrangeServerError, redis.exceptions.RedisError, OSError) as error:
        module.fail_json(msg=f"{where}: {error or 'no answer in time'}")
    if found:
        module.fail_json(msg=f"{where}: {' '.join(found)}")
    module.exit_json(
        changed=False,
        taken=sorted({user for one in params["taken"] for user in one}),
        refused=sorted(params["refused"]),
    )


if __name__ == "__main__":
    main()
