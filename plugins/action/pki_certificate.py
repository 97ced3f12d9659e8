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


class ActionModule(ActionBase):
    """The action."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        text, path = {"type": "str", "required": True}, {"type": "path", "required": True}
        number = {"type": "int", "required": True}
        _unused, given = self.validate_argument_spec(
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
        return {**result, "changed": bool(why), "reasons": why}


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
