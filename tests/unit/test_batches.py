"""In which order a release comes to hosts."""

from __future__ import annotations

from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.unit.rendering import PROJECT


def order(groups: dict[str, list[str]]) -> list[str]:
    """Return the hosts of the play that runs workers, one after another."""
    plays: list[dict[str, Any]] = yaml.safe_load((PROJECT / "playbooks/workers.yml").read_text())
    [play] = [play for play in plays if "serial" in play]
    templar = Templar(DataLoader(), variables={"groups": groups})
    hosts: str = templar.template(trust_as_template(play["hosts"]))
    return hosts.split(",")


def test_hosts_come_in_the_inventorys_order() -> None:
    """So that an operator knows which one is first; and those that are drained come last."""
    workers = [f"worker{number}" for number in range(30)]
    assert order({"workers": workers}) == workers
    drained = ["worker0", "worker7"]
    others = [name for name in workers if name not in drained]
    assert order({"workers": workers, "workers_drained": drained}) == [*others, *drained]
