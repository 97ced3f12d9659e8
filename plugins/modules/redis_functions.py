#!/usr/bin/python
"""Load libraries of functions into a running Redis."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: redis_functions
short_description: Load libraries of functions into a running Redis
description:
  - Loads each library that Redis does not have, or has with another text. A client that calls a function
    meanwhile notices nothing.
  - Libraries of other names stay. A library's name is a hash of what it does, so that those of two releases
    are there side by side, and a release that is gone leaves some kilobytes.
  - Redis keeps them in its append-only file, and on its replicas. They are lost by FUNCTION FLUSH, and with
    the data directory.
  - Functions cannot be loaded into a Redis that has reached its C(maxmemory).
options:
  host: {description: Address that Redis listens on., type: str, required: true}
  port: {description: Its TLS port., type: int, required: true}
  ca_file: {description: CA certificate that the server's must chain to., type: path, required: true}
  timeout: {description: Seconds to wait for an answer., type: int, default: 10}
  user: {description: User that may load them., type: str, default: admin}
  password: {description: Its password., type: str, required: true}
  db: {description: Number of a database. Functions belong to none., type: int, default: 0}
  libraries:
    description: The text of each library. Its first line has its name, C(#!lua name=...).
    type: list
    elements: str
    required: true
author: celery-fleet
requirements: [python3-redis]
"""

EXAMPLES = r"""
- name: Load the functions
  redis_functions:
    host: 127.0.0.1
    port: 6379
    ca_file: /etc/fleet/tls/ca.crt
    password: "{{ redis_passwords.admin }}"
    libraries: ["{{ lookup('ansible.builtin.file', 'functions/turn.lua', rstrip=false) }}"]
"""

RETURN = r"""
loaded: {description: Names of the libraries that were loaded., returned: success, type: list, elements: str}
"""

import re
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.redis_tls import StrangeServerError, login_arguments, redis, verified_login

if TYPE_CHECKING:
    from typing import Any

NAME = re.compile(r"#!lua name=(\w+)\n")


class RefusedError(Exception):
    """A library cannot be loaded; the message says why."""


def name_of(library: str) -> str:
    """Return the name of a library.

    Raises:
        RefusedError: Its first line has none.
    """
    found = NAME.match(library)
    if not found:
        raise RefusedError(f"The first line of a library is not '#!lua name=...': {library[:40]!r}")
    return found[1]


def present(client: Any) -> dict[str, str]:
    """Return the text of each library that Redis has."""
    found = client.execute_command("FUNCTION LIST", "WITHCODE")
    facts = [one if isinstance(one, dict) else dict(zip(one[::2], one[1::2], strict=True)) for one in found]
    return {one["library_name"]: one["library_code"] for one in facts}


def load(client: Any, libraries: list[str], *, check: bool) -> list[str]:
    """Load the libraries that Redis does not have, and return their names.

    Raises:
        RefusedError: Redis does not take one.
    """
    there, loaded = present(client), []
    for library in libraries:
        name = name_of(library)
        if there.get(name) == library:
            continue
        loaded.append(name)
        if check:
            continue
        try:
            client.execute_command("FUNCTION LOAD", "REPLACE", library)
        except redis.exceptions.ResponseError as error:
            full = "OOM" in str(error) or "maxmemory" in str(error)
            remedy = " Redis is full: let tasks run, purge a queue, or raise redis_maxmemory." if full else ""
            raise RefusedError(f"Redis does not take the library {name}: {error}.{remedy}") from None
    return loaded


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **login_arguments(),
            "password": {"type": "str", "required": True, "no_log": True},
            "libraries": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    if redis is None:
        module.fail_json(msg=missing_required_lib("redis"))
    params = module.params
    try:
        loaded = load(verified_login(params), params["libraries"], check=module.check_mode)
    except RefusedError as error:
        module.fail_json(msg=str(error))
    except (StrangeServerError, redis.exceptions.RedisError, OSError) as error:
        module.fail_json(
            msg=f"Redis at {params['host']}:{params['port']} cannot be asked: {str(error) or 'no answer'}"
        )
    module.exit_json(changed=bool(loaded), loaded=loaded)


if __name__ == "__main__":
    main()
