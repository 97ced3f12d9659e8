# SPDX-License-Identifier: MIT
"""Passwords, certificates and the authority are replaced while the fleet works, and no task notices."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml
from ansible_collections.fleet.celery.plugins.action import fleet_secrets
from cryptography import x509

from tests.fleet.support import canaries
from tests.fleet.support.inventory import ROOT
from tests.fleet.support.marks import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.operations.at_work import Operator
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays, Run

pytestmark = [*OPERATIONS, pytest.mark.faults, pytest.mark.load, pytest.mark.timeout(1200)]

SECRETS = "playbooks/rotate_secrets.yml"
CERTIFICATES = "playbooks/rotate_certificates.yml"


@pytest.fixture(autouse=True)
def _denials(fleet: Fleet) -> Iterator[None]:
    """Keep what these tests and plays try on purpose out of the denials that count."""
    with fleet.broker.expected_denials():
        yield


def takes(fleet: Fleet, user: str, password: str) -> bool:
    """Whether Redis lets a user in with a password."""
    try:
        with fleet.broker.connect(user, password=password) as client:
            return bool(client.ping())
    except redis.AuthenticationError:
        return False


def shown(run: Run, *secrets: dict[str, str]) -> set[str]:
    """Return the names of the secrets that a run has shown."""
    return {name for some in secrets for name in canaries.search(run.output, some)}


def restarting(fleet: Fleet) -> set[tuple[str, str]]:
    """Return the units that read a password at their start."""
    return {
        (host.name, unit)
        for host in fleet.hosts.values()
        for unit in fleet.units(host)
        if unit.startswith(("celery-worker@", "celery-beat.", "flower."))
    }


def replaced(operator: Operator, name: str, playbook: str, **variables: str) -> Run:
    """Run a playbook while tasks are sent and counted, and learn what it has replaced."""

    def replace() -> Run:
        run = operator.play(playbook, **variables)
        operator.fleet.reread()
        return run

    return operator.counted(name, replace)


def test_passwords_are_replaced(fleet: Fleet, plays: Plays, operator: Operator) -> None:
    """All but one for programs outside the fleet: the old one ends up refused, and no task fails."""
    old, before = dict(fleet.inventory.secrets), fleet.starts()
    run = replaced(operator, "rotate passwords", SECRETS)
    new = fleet.inventory.secrets

    assert {name for name in old if old[name] != new[name]} == set(old) - {"redis_web"}
    assert fleet.restarted(before) == restarting(fleet)
    users = {name.removeprefix("redis_"): name for name in old if name.startswith("redis_")}
    assert {user for user, name in users.items() if not takes(fleet, user, new[name])} == set()
    assert {user for user, name in users.items() if takes(fleet, user, old[name])} == {"web"}
    if fleet.group("flower"):
        login = (fleet.flower.user, old["flower"])
        assert fleet.flower.statuses(["/workers"], "GET", login) == {"/workers": 401}
    assert fleet.is_whole()
    assert shown(run, old, dict(new)) == set()
    assert not plays.run(playbook="playbooks/redis.yml").expect_success().changes


@pytest.mark.long
def test_a_rotation_that_is_interrupted_between_batches(
    fleet: Fleet, plays: Plays, operator: Operator
) -> None:
    """Some nodes have the new password by then, and others the old one; no task fails on either."""
    old = fleet.inventory.secrets["redis_worker"]
    operator.interrupted(SECRETS, fleet_rotate="worker")
    assert takes(fleet, "worker", old)
    made = yaml.safe_load(vault_tool("view", plays))["fleet_secrets"]["redis_worker"]
    replaced(operator, "interrupted rotation", SECRETS, fleet_rotate="worker")
    assert fleet.inventory.secrets["redis_worker"] == made != old, "the run that ends it makes no third one"
    assert [takes(fleet, "worker", password) for password in (old, made)] == [False, True]
    assert fleet.is_whole()


@pytest.mark.long
def test_an_environment_that_was_not_released_stays_so(fleet: Fleet, plays: Plays) -> None:
    """The operator's command has its new password, and no process what was not checked with the app."""
    host = fleet.group("workers")[0]
    old, environment = fleet.inventory.secrets["redis_ops"], host.sh("sha256sum /etc/celery/app.env")
    before = fleet.starts()
    plays.run(
        playbook=SECRETS, fleet_rotate="ops", celery_app_environment={"FEATURE": "new"}
    ).expect_success()
    fleet.reread()
    assert takes(fleet, "ops", fleet.inventory.secrets["redis_ops"])
    assert not takes(fleet, "ops", old)
    assert host.sh("sha256sum /etc/celery/app.env") == environment
    assert fleet.restarted(before) == set()
    host.sh("fleet-celery fleet status")


@pytest.mark.parametrize(
    ("variables", "names", "restarted"),
    [
        (
            {},
            {
                "redis_admin",
                "redis_health",
                "redis_ops",
                "redis_worker",
                "redis_beat",
                "redis_flower",
                "flower",
                "pki_ca",
            },
            "the nodes of the workers, Beat, Flower",
        ),
        ({"fleet_rotate": "beat"}, {"redis_beat"}, "Beat"),
    ],
    ids=["all", "beat"],
)
def test_check_mode_replaces_nothing(
    fleet: Fleet, plays: Plays, variables: dict[str, str], names: set[str], restarted: str
) -> None:
    """It says what would be replaced and restarted, and both the vault file and the fleet stay."""
    before = fleet.starts()
    vault = vault_file(plays).read_bytes()
    run = plays.run("--check", playbook=SECRETS, **variables).expect_success()
    said = " ".join(run.output.split())
    replaced_now = re.search(r"Replaced now: ([\w, ]+)", said)
    assert replaced_now is not None
    assert set(replaced_now[1].strip().split(", ")) == names
    assert f"Restarted, batch by batch: {restarted}" in said
    assert vault_file(plays).read_bytes() == vault
    assert fleet.restarted(before) == set()
    assert fleet.is_whole()


@pytest.mark.long
def test_a_replacement_that_was_interrupted_is_finished(fleet: Fleet, plays: Plays) -> None:
    """Whatever had been done: both passwords are taken until the next run, which makes no third one."""
    old = fleet.inventory.secrets["redis_health"]
    content = yaml.safe_load(vault_tool("view", plays))
    new = fleet_secrets.new_password()
    now, before = {**content["fleet_secrets"], "redis_health": new}, {"redis_health": old}
    write_vault(plays, fleet_secrets.edited(yaml.safe_dump(content), now, before))

    plays.run(playbook="playbooks/redis.yml").expect_success()
    assert [takes(fleet, "health", password) for password in (old, new)] == [True, True]

    plays.run(playbook=SECRETS, fleet_rotate="health").expect_success()
    fleet.reread()
    assert fleet.inventory.secrets["redis_health"] == new
    assert [takes(fleet, "health", password) for password in (old, new)] == [False, True]
    assert "fleet_secrets_previous" not in yaml.safe_load(vault_tool("view", plays))


@pytest.mark.long
def test_a_replacement_is_taken_back(fleet: Fleet, plays: Plays) -> None:
    """The old and the new passwords change places in the vault file; the next run refuses the new ones."""
    text = yaml.safe_dump(yaml.safe_load(vault_tool("view", plays)))
    secrets = dict(fleet.inventory.secrets)
    old = {name: secrets[name] for name in ("redis_health", "pki_ca")}
    new = {name: fleet_secrets.new_password() for name in old}
    write_vault(plays, fleet_secrets.edited(text, secrets | new, old))
    plays.run(
        playbook="playbooks/parts/pki.yml"
    ).expect_success()  # the authority's key has the new passphrase
    plays.run(playbook="playbooks/redis.yml").expect_success()

    write_vault(plays, fleet_secrets.edited(text, secrets, new))
    plays.run(playbook=SECRETS, fleet_rotate="health,ca").expect_success()
    fleet.reread()
    assert dict(fleet.inventory.secrets) == secrets
    assert [takes(fleet, "health", known["redis_health"]) for known in (old, new)] == [True, False]
    assert "fleet_secrets_previous" not in yaml.safe_load(vault_tool("view", plays))
    assert not plays.run(playbook="playbooks/parts/pki.yml").expect_success().changes


@pytest.mark.long
def test_programs_outside_the_fleet_have_time(
    fleet: Fleet, plays: Plays, operator: Operator, producer: Producer
) -> None:
    """Both passwords of `web` are taken until an operator says that the old one is not used any more."""
    old = fleet.inventory.secrets["redis_web"]
    refused = plays.run(playbook=SECRETS, fleet_rotate_finish="web")
    refused.expect_refusal("whose password is not being replaced")

    begun = replaced(operator, "rotate web: begin", SECRETS, fleet_rotate="web")
    assert "fleet_rotate_finish=web" in begun.output
    new = fleet.inventory.secrets["redis_web"]
    assert [takes(fleet, "web", password) for password in (old, new)] == [True, True]

    producer.configure()
    ended = replaced(operator, "rotate web: finish", SECRETS, fleet_rotate_finish="web")
    assert [takes(fleet, "web", password) for password in (old, new)] == [False, True]
    assert fleet.is_whole()
    assert shown(begun, {"old": old, "new": new}) | shown(ended, {"old": old, "new": new}) == set()


def test_certificates_are_replaced(fleet: Fleet, plays: Plays, operator: Operator) -> None:
    """Each host has a new key and certificate, which Redis and nginx show at once; nothing is restarted."""
    before, old, keys = fleet.starts(), serials(fleet), of_hosts(fleet, "host.key")
    replaced(operator, "rotate certificates", CERTIFICATES)

    assert not set(serials(fleet).values()) & set(old.values())
    assert not set(of_hosts(fleet, "host.key").values()) & set(keys.values())
    assert fleet.restarted(before) == set()
    assert fleet.is_whole()
    assert not plays.run(playbook="playbooks/parts/pki.yml").expect_success().changes


@pytest.mark.long
def test_the_authority_is_replaced(fleet: Fleet, plays: Plays, operator: Operator) -> None:
    """Hosts trust both, then the new one signs, then the old one is gone; no client is refused meanwhile."""
    before, old, trusted = fleet.starts(), serials(fleet), fleet.ca_file.read_text()
    for mode in ([], ["--check"]):
        refused = plays.run(*mode, playbook=CERTIFICATES, fleet_rotate_ca="finish")
        refused.expect_refusal("No new authority was begun")
    replaced(operator, "rotate authority: begin", CERTIFICATES, fleet_rotate_ca="begin")
    assert serials(fleet) == old
    shown_before = of_hosts(fleet, "host.crt")
    assert {len(authorities(text)) for text in of_hosts(fleet, "ca.crt").values()} == {2}
    assert not plays.run(playbook="playbooks/parts/pki.yml").expect_success().changes
    plays.run("--check", playbook=CERTIFICATES, fleet_rotate_ca="finish").expect_success()
    assert of_hosts(fleet, "host.crt") == shown_before
    plays.interrupted(
        playbook=CERTIFICATES,
        when=lambda: of_hosts(fleet, "host.crt") != shown_before,
        fleet_rotate_ca="finish",
    )
    replaced(operator, "rotate authority: finish", CERTIFICATES, fleet_rotate_ca="finish")

    assert not set(serials(fleet).values()) & set(old.values())
    (now,) = set(of_hosts(fleet, "ca.crt").values())
    assert len(authorities(now)) == 1
    assert not set(authorities(now)) & set(authorities(trusted))
    assert fleet.restarted(before) == set()
    assert fleet.is_whole()
    controller = Path(fleet.group("redis")[0].variables["pki_ca_dir"])
    assert {path.name for path in controller.iterdir()} == {"ca.crt", "ca.csr", "ca.key", "hosts"}
    assert not plays.run(playbook="playbooks/parts/pki.yml").expect_success().changes


# --- what the controller and the hosts have ---


def vault_file(plays: Plays) -> Path:
    """Return the vault file of the inventory that counts most."""
    sources = [
        plays.inventory_arguments[i + 1] for i, word in enumerate(plays.inventory_arguments) if word == "-i"
    ]
    return ROOT / sources[-1] / "group_vars" / "all" / "vault.yml"


def vault_tool(verb: str, plays: Plays, *arguments: str, text: str = "") -> str:
    """Return what `ansible-vault` says."""
    given = [word for word in plays.inventory_arguments if word.startswith("--vault-password-file")]
    command = ["ansible-vault", verb, *given, *(arguments or [str(vault_file(plays))])]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, input=text)
    return done.stdout


def write_vault(plays: Plays, text: str) -> None:
    """Encrypt a text into the vault file."""
    vault_tool(
        "encrypt", plays, "--encrypt-vault-id=default", f"--output={vault_file(plays)}", "-", text=text
    )


def of_hosts(fleet: Fleet, name: str) -> dict[str, str]:
    """Return what each host has in a file with its certificates; of a key, a checksum."""

    def read(host: Host) -> str:
        tool = "sha256sum" if name.endswith(".key") else "cat"
        return host.sh('"$1" "$2"', tool, f"{host.variables['fleet_tls_dir']}/{name}")

    return {host.name: read(host) for host in fleet.hosts.values()}


def authorities(text: str) -> list[Any]:
    """Return the certificates in a text."""
    return x509.load_pem_x509_certificates(text.encode())


def serials(fleet: Fleet) -> dict[str, str]:
    """Return the serial numbers of the certificates that Redis and nginx show."""
    found = {"redis": fleet.broker.serial()}
    return found | ({"flower": fleet.flower.serial()} if fleet.group("flower") else {})
