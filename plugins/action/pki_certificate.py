# SPDX-License-Identifier: MIT
"""Make a host's certificate, on the controller.

An action plugin and not a module: what a host says reaches it as one value, its public key, and no module
that runs elsewhere gets to see the authority.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.fleet.celery.plugins.module_utils import pki_certificate as pki
from ansible_collections.fleet.celery.plugins.module_utils import pki_names
from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file

DOCUMENTATION = r"""
name: pki_certificate
short_description: Make a host's certificate, on the controller
description:
  - All that it says comes from the arguments. A host adds its public key, and nothing else.
  - Refuses a name or an address that is another host's, one that the authority does not permit, and a public
    key of a kind that the role pki does not make.
  - A certificate that is there already, and says all that it should, stays.
options:
  path: {description: The certificate., type: path, required: true}
  public_key: {description: The host's public key (PEM)., type: str, required: true}
  names: {description: Its names and addresses., type: list, elements: str, required: true}
  days: {description: How long it is valid., type: int, required: true}
  renew_days: {description: How long before its end it is replaced., type: int, required: true}
  fleet: {description: How each host is called (the action C(pki_fleet))., type: dict, required: true}
  authority: {description: Path of the authority's certificate., type: path, required: true}
  authority_key: {description: Path of its key., type: path, required: true}
  passphrase: {description: That of the key., type: str, required: true}
  replace: {description: Replace one that is as it should be., type: bool, default: false}
author: celery-fleet
requirements: [cryptography >= 42]
"""

RETURN = r"""
why: {description: Why it was made., returned: success, type: list, elements: str}
"""


class ActionModule(ActionBase):
    """The action."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        text, path = {"type": "str", "required": True}, {"type": "path", "required": True}
        number = {"type": "int", "required": True}
        _, given = self.validate_argument_spec(
            {
                "path": path,
                "public_key": text,
                "names": {"type": "list", "elements": "str", "required": True},
                "days": number,
                "renew_days": number,
                "fleet": {"type": "dict", "required": True},
                "authority": path,
                "authority_key": {**path, "no_log": False},
                "passphrase": {**text, "no_log": True},
                "replace": {"type": "bool", "default": False},
            }
        )
        host = str(task_vars["inventory_hostname"])
        try:
            why = make(host, given, check=bool(self._task.check_mode))
        except (pki.PkiError, OSError) as error:
            raise AnsibleActionFail(f"No certificate was made for {host}. {error}") from None
        return {**result, "changed": bool(why), "why": why}


def make(host: str, given: dict[str, Any], *, check: bool) -> list[str]:
    """Make a host's certificate, unless it is there and as it should be.

    Returns:
        Why it was, or in check mode would be, made.

    Raises:
        PkiError: There will be none.
    """
    refuse_names_of_others(host, given["names"], given["fleet"])
    form = pki.Form(host, tuple(given["names"]), given["days"])
    public_key = pki.host_key(given["public_key"])
    path, authority_pem = Path(given["path"]), Path(given["authority"]).read_text()
    if not path.exists():
        why = ["There was none."]
    else:
        why = pki.differences(path.read_text(), form, authority_pem, public_key)
        if not why and pki.is_due(path.read_text(), given["renew_days"]):
            why = ["It ends soon."]
        if not why and given["replace"]:
            why = ["It is to be replaced."]
    if why and not check:
        authority = pki.certificate(authority_pem)
        key = pki.signing_key(Path(given["authority_key"]).read_bytes(), given["passphrase"], authority)
        replace_file(path, pki.sign(form, public_key, authority, key), mode=0o644)
    return why


def refuse_names_of_others(host: str, names: list[str], fleet: dict[str, Any]) -> None:
    """Refuse a certificate in which another host would be named.

    Raises:
        PkiError: It would.
    """
    called = {one: pki_names.Called.from_dict(how) for one, how in fleet.items()}
    services = called[host].services if host in called else ()
    called[host] = pki_names.Called(
        own=pki_names.names([host]), services=services, more=pki_names.names(names)
    )
    if found := [f"{name} is {other}'s." for name, other in pki_names.of_others(host, called)]:
        raise pki.PkiError(" ".join(found))
    for name in names:
        if reason := pki_names.unfit(name):
            raise pki.PkiError(f"{name} cannot be in it: {reason}.")
