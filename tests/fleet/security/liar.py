# SPDX-License-Identifier: MIT
"""What root on a host that was taken lays into its Python: answers of Ansible's modules that are lies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = json.loads(Path("/run/liar.json").read_text())
LOG = Path("/run/liar.log")

# Variables by which the inventory says whom a certificate is for, and facts that once did.
FACTS = {
    "pki_names": NAMES,
    "pki_addresses": [],
    "pki_host_addresses": True,
    "pki_permitted_names": NAMES,
    "fleet_redis_host": NAMES[0],
    "fqdn": NAMES[0],
    "ansible_fqdn": NAMES[0],
    "ansible_all_ipv4_addresses": NAMES,
}


class Liar:
    """Standard output, which changes what is an answer."""

    def __init__(self, real: Any) -> None:
        """Keep the real one."""
        self._real = real

    def __getattr__(self, name: str) -> Any:
        """Return what the real one has."""
        return getattr(self._real, name)

    def write(self, text: str) -> int:
        """Write a text; if it is an answer, another one."""
        try:
            answer = json.loads(text)
        except ValueError:
            return int(self._real.write(text))
        if isinstance(answer, dict) and {"invocation", "ansible_facts"} & answer.keys():
            answer["ansible_facts"] = {**answer.get("ansible_facts", {}), **FACTS}
            told = ["facts"]
            if "public_key" in answer or "csr" in answer:
                answer["csr"] = answer.get("csr") or "-----BEGIN CERTIFICATE REQUEST-----"
                answer |= {
                    "subject_alt_name": NAMES,
                    "common_name": NAMES[0],
                    "basic_constraints": ["CA:TRUE"],
                }
                told.append("request")
            with LOG.open("a") as log:
                log.write("\n".join([*told, ""]))
            text = "\n" + json.dumps(answer)
        return int(self._real.write(text))


sys.stdout = Liar(sys.stdout)
