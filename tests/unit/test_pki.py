# SPDX-License-Identifier: MIT
"""The role pki: who a certificate is for, when it is renewed, and which provided ones are refused."""

from __future__ import annotations

import datetime
import ipaddress
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.template import trust_as_template
from ansible_collections.fleet.celery.plugins.module_utils import pki_certificate as pki
from ansible_collections.fleet.celery.plugins.module_utils import pki_names
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.authority import Authority
from tests.unit.rendering import PROJECT, Role

if TYPE_CHECKING:
    from pathlib import Path

PASSPHRASE = "'\"$HOME \\ `id` %40 @:/# {{ 1 }}"


def role(**variables: Any) -> Role:
    """Return the role with the variables that a playbook gives it."""
    given: dict[str, Any] = {
        "ansible_check_mode": False,
        "ansible_host": "192.0.2.10",
        "ansible_facts": {
            "fqdn": "Host1.example.com",
            "all_ipv4_addresses": ["192.0.2.10", "10.0.0.1", "169.254.7.7"],
            "all_ipv6_addresses": ["2001:db8::10", "fe80::1", "FEBF::1", "fd00::1"],
        },
        "pki_ca_dir": "/nonexistent",
        "pki_ca_passphrase": PASSPHRASE,
    }
    given |= variables
    given.setdefault("__pki_inventory", {"hosts": {"host1": called(given)}})
    return Role("pki", **given)


def called(variables: dict[str, Any], **groups: list[str]) -> dict[str, Any]:
    """Return how the inventory calls host1."""
    return dict(pki_names.called("host1", variables, groups).as_dict())


def write_certificate(directory: Path, days: float, *names: str, begins: float = -1) -> None:
    """Write host.crt and host.key, with any number of DNS names and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=begins))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([general(n) for n in names]), critical=False
        )
    certificate = builder.sign(key, hashes.SHA256())
    (directory / "host.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "host.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def general(name: str) -> x509.GeneralName:
    """Return a name or an address for a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def test_a_certificate_is_for_what_the_inventory_has() -> None:
    given = role(pki_names=["redis.example.com"], pki_addresses=["198.51.100.7"])
    assert given.evaluate("__pki_host_names") == ["192.0.2.10", "198.51.100.7", "host1", "redis.example.com"]


@pytest.mark.parametrize(
    ("group", "variables", "names"),
    [
        (
            "redis",
            {"fleet_redis_host": "broker", "redis_bind": ["127.0.0.1", "-10.0.0.1"]},
            {"broker", "10.0.0.1"},
        ),
        ("flower", {"flower_bind": ["[2001:db8::7]"], "flower_server_name": "shop"}, {"2001:db8::7", "shop"}),
        ("workers", {"fleet_redis_host": "broker", "flower_bind": ["10.0.0.1"]}, set()),
    ],
)
def test_a_certificate_is_for_what_clients_of_a_service_are_told(
    group: str, variables: dict[str, Any], names: set[str]
) -> None:
    inventory = {
        "hosts": {"host1": called({"ansible_host": "192.0.2.10", **variables}, **{group: ["host1"]})}
    }
    found = set(role(__pki_inventory=inventory).evaluate("__pki_host_names"))
    assert found == {"host1", "192.0.2.10"} | names | (
        set() if group == "workers" else set(pki_names.LOOPBACK)
    )


def test_what_a_host_says_of_itself_is_in_no_certificate() -> None:
    assert role().evaluate("__pki_host_names") == ["192.0.2.10", "host1"]
    without = role(ansible_facts={})
    assert without.evaluate("__pki_host_names") == role().evaluate("__pki_host_names")


@pytest.mark.parametrize(
    ("at", "name"),
    [
        ("broker.example.com", "broker.example.com"),
        ("Broker.Example.com.", "broker.example.com"),
        ("2001:DB8::1", "2001:db8::1"),
        ("cafe", "cafe"),
        ("10.example.com", "10.example.com"),
    ],
)
def test_an_address_of_the_inventory_may_be_a_name(at: str, name: str) -> None:
    assert name in role(ansible_host=at).evaluate("__pki_host_names")


@pytest.mark.parametrize("at", ["127.0.0.1", "::1", "localhost", "169.254.7.7", "fe80::1", "::"])
def test_what_is_another_host_on_each_host_names_none(at: str) -> None:
    given = role(ansible_host=at, pki_addresses=[at], redis_bind=[at, "*"])
    assert given.evaluate("__pki_host_names") == ["host1"]


@pytest.mark.parametrize(("days", "due"), [(29, True), (31, False), (-1, True)])
def test_a_certificate_is_renewed_inside_the_window(tmp_path: Path, days: int, due: bool) -> None:
    hosts = tmp_path / "hosts"
    hosts.mkdir()
    write_certificate(hosts, days + 0.5, "host1")
    (hosts / "host.crt").rename(hosts / "host1.crt")
    assert role(pki_ca_dir=str(tmp_path)).evaluate("__pki_issued_due") is due


def certified(directory: Path, **variables: Any) -> Any:
    """Return whether a host counts as certified, with what was issued for host1 and 192.0.2.10."""
    return role(pki_ca_dir=str(directory), **variables).evaluate("__pki_certified")


def issue(directory: Path, authority: Authority, days: int = 365, **form: Any) -> None:
    """Write what the controller has: an authority, and the certificate that it issued for host1."""
    (directory / "hosts").mkdir(exist_ok=True)
    (directory / "ca.crt").write_text(authority.pem)
    wanted = pki.Form(**{"host": "host1", "names": ("host1", "192.0.2.10"), "days": days, **form})
    (directory / "hosts/host1.crt").write_text(authority.issue(wanted))


def test_what_was_issued_is_not_issued_again(tmp_path: Path) -> None:
    issue(tmp_path, Authority())
    assert certified(tmp_path)


@pytest.mark.parametrize(
    "form",
    [
        {"host": "redis1"},
        {"names": ("host1", "192.0.2.10", "192.0.2.11")},
        {"names": ("host1",)},
        {"days": 90},
    ],
)
def test_what_was_issued_for_something_else_is_issued_again(tmp_path: Path, form: dict[str, Any]) -> None:
    issue(tmp_path, Authority(), **form)
    assert not certified(tmp_path)


def test_what_another_authority_issued_is_issued_again(tmp_path: Path) -> None:
    issue(tmp_path, Authority())
    (tmp_path / "ca.crt").write_text(Authority().pem)
    assert not certified(tmp_path)


def test_what_is_about_to_end_is_issued_again(tmp_path: Path) -> None:
    issue(tmp_path, Authority(), days=29)
    assert certified(tmp_path, pki_days=29) is False


def test_a_certificate_that_is_not_there_is_not_renewed(tmp_path: Path) -> None:
    given = role(pki_ca_dir=str(tmp_path))
    assert given.evaluate("__pki_issued_due") is False
    assert given.evaluate("__pki_authority_due") is False


def refusals(given: Role, file: str) -> list[str]:
    """Return the messages of those checks of a task file that do not hold."""

    def value(text: str) -> Any:
        return given.templar.template(trust_as_template(text))

    tasks = yaml.safe_load((given.path / file).read_text())
    tasks += [inner for task in tasks for inner in task.get("block", [])]
    (checks,) = (task["vars"]["__pki_rules"] for task in tasks if "__pki_rules" in task.get("vars", {}))
    return [str(value(check["message"])) for check in checks if not value(check["holds"])]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"pki_provided_ca_file": "/ca.crt"}, "set all three, or none"),
        ({"pki_ca_dir": "relative"}, "pki_ca_dir: set the absolute path"),
        ({"pki_ca_passphrase": ""}, "pki_ca_passphrase: It is too weak: 0 characters."),
        ({"pki_ca_passphrase": "short"}, "Set one of at least 16 characters."),
        ({"pki_days": 30}, "pki_renew_days: 30 days before the end of"),
        ({"pki_days": 4000}, "no more than pki_ca_days"),
    ],
)
def test_refuses(variables: dict[str, Any], message: str) -> None:
    (found,) = refusals(role(**variables), "tasks/validate.yml")
    assert message in found
    assert PASSPHRASE not in found


def test_refuses_nothing_else() -> None:
    assert refusals(role(), "tasks/validate.yml") == []
    provided = {f"pki_provided_{name}_file": f"/{name}" for name in ("ca", "cert", "key")}
    assert refusals(role(**provided, pki_ca_dir="", pki_ca_passphrase=""), "tasks/validate.yml") == []


def provided(directory: Path) -> Role:
    """Return the role with certificates of the operator's own."""
    return role(
        pki_provided_ca_file=str(directory / "ca.crt"),
        pki_provided_cert_file=str(directory / "host.crt"),
        pki_provided_key_file=str(directory / "host.key"),
        pki_names=["host1.example.com"],
    )


@pytest.mark.parametrize(
    ("days", "names", "begins", "message"),
    [
        (90, ["host1"], -1, ""),
        (90, ["other.example.com", "192.0.2.10"], -1, ""),
        (90, ["*.example.com"], -1, ""),
        (90, ["host1.other.example"], -1, "it is for DNS:host1.other.example"),
        (-0.5, ["host1"], -1, "it expired at"),
        (90, ["host1"], 1, "it is not valid before"),
        (90, ["other.example.com", "127.0.0.1", "localhost"], -1, "it is for DNS:other.example.com"),
        (90, [], -1, "it is for no name at all"),
    ],
)
def test_a_provided_certificate_is_checked(
    tmp_path: Path, days: float, names: list[str], begins: float, message: str
) -> None:
    write_certificate(tmp_path, days, *names, begins=begins)
    found = refusals(provided(tmp_path), "tasks/internal/provided.yml")
    assert [message in text for text in found] == ([True] if message else [])


def test_a_provided_certificate_with_another_key_is_refused(tmp_path: Path) -> None:
    write_certificate(tmp_path, 90, "host1")
    certificate = (tmp_path / "host.crt").read_bytes()
    write_certificate(tmp_path, 90, "host1")
    (tmp_path / "host.crt").write_bytes(certificate)
    assert refusals(provided(tmp_path), "tasks/internal/provided.yml") == ["it belongs to another key"]


# --- the replacement of the authority ---


def authorities(directory: Path, step: str) -> Role:
    """Return the role with two authorities on the controller, and how far the one replaces the other."""
    for folder, days in (("", 90), ("next", 91), ("hosts", 90)):
        (directory / folder).mkdir(exist_ok=True)
        write_certificate(directory / folder, days, "host1")
        (directory / folder / "host.crt").rename(directory / folder / "ca.crt")
    if step:
        (directory / "rotation").write_text(step)
    return role(pki_ca_dir=str(directory))


@pytest.mark.parametrize(
    ("step", "trusted", "signs"),
    [
        ("", [""], ""),
        ("begun", ["", "next"], ""),
        ("switched", ["", "next"], "next"),
        ("ending", ["next"], "next"),
    ],
)
def test_who_is_trusted_and_who_signs(tmp_path: Path, step: str, trusted: list[str], signs: str) -> None:
    given = authorities(tmp_path, step)
    contents = given.evaluate("__pki_contents")
    certificates = [(tmp_path / folder / "ca.crt").read_text() for folder in trusted]
    assert contents["/etc/fleet/tls/ca.crt"] == "".join(certificates)
    assert given.evaluate("__pki_authority_cert") == str(tmp_path / signs / "ca.crt")
    assert len(x509.load_pem_x509_certificates(contents["/etc/fleet/tls/ca.crt"].encode())) == len(trusted)


def test_with_the_next_authority_every_host_is_certified_anew(tmp_path: Path) -> None:
    issue(tmp_path, Authority())
    (tmp_path / "next").mkdir()
    (tmp_path / "next/ca.crt").write_text(Authority().pem)
    for step, done in (("begun", True), ("switched", False), ("ending", False)):
        (tmp_path / "rotation").write_text(step)
        assert certified(tmp_path) is done


def test_a_certificate_is_replaced_on_request(tmp_path: Path) -> None:
    issue(tmp_path, Authority())
    assert certified(tmp_path, pki_replace=True) is False


def test_a_step_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    (found,) = refusals(authorities(tmp_path, "half"), "tasks/validate.yml")
    assert f"{tmp_path}/rotation must have one of begun, switched, ending" in found


def test_what_was_provided_is_not_replaced() -> None:
    own = {f"pki_provided_{name}_file": f"/{name}" for name in ("ca", "cert", "key")}
    (found,) = refusals(role(**own, pki_replace=True), "tasks/validate.yml")
    assert "one of your own" in found


def test_the_inventory_is_read_as_it_is_written(tmp_path: Path) -> None:
    """With templates in it, of which one asks for a variable of another host."""
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"fleet.celery.pki_fleet": None, "register": "found", "run_once": True},
            {
                "ansible.builtin.copy": {
                    "content": "{{ found.hosts | to_json }}",
                    "dest": f"{tmp_path}/found",
                },
                "delegate_to": "localhost",
                "run_once": True,
                "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
            },
        ],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    command = ["ansible-playbook", "-i", "inventories/fleet", f"{tmp_path}/play.yml"]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    found = json.loads((tmp_path / "found").read_text())
    assert found["redis1"] == {
        "own": ["redis1", "192.0.2.11"], "services": ["192.0.2.11"], "more": [], "serves": True,
    }  # fmt: skip
    assert found["worker1"] == {
        "own": ["worker1", "192.0.2.21"], "services": [], "more": [], "serves": False,
    }  # fmt: skip


# --- what the authority permits ---


HOSTS = {
    "host1": {"ansible_host": "192.0.2.10", "fleet_redis_host": "broker.example.com"},
    "host2": {"ansible_host": "192.0.2.20"},
}


def fleet_role(directory: Path, **variables: Any) -> Role:
    """Return the role with two hosts, of which the first has Redis."""
    groups = {"all": list(HOSTS), "redis": ["host1"], "workers": ["host2"]}
    hosts = {host: pki_names.called(host, {**of, **variables}, groups) for host, of in HOSTS.items()}
    inventory = {"hosts": {host: how.as_dict() for host, how in hosts.items()}}
    return role(pki_ca_dir=str(directory), __pki_inventory=inventory, **variables)


LOCAL = ["DNS:localhost", "IP:127.0.0.1/32", "IP:::1/128"]
ALL = [
    "DNS:broker.example.com", "DNS:host1", "DNS:host2", "DNS:localhost",
    "IP:127.0.0.1/32", "IP:192.0.2.10/32", "IP:192.0.2.20/32", "IP:::1/128",
]  # fmt: skip


def test_a_new_authority_permits_what_the_inventory_has(tmp_path: Path) -> None:
    assert fleet_role(tmp_path).evaluate("__pki_constraints") == ALL


def test_an_authority_of_before_permits_all_until_the_end_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(Authority().pem)
    assert fleet_role(tmp_path).evaluate("__pki_constraints") == []
    assert fleet_role(tmp_path).evaluate("__pki_permitted_wanted") == ALL


def test_a_host_that_is_new_is_permitted_and_one_that_went_is_until_the_end_of_the_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "ca.crt").write_text(Authority([*LOCAL, "DNS:host1", "DNS:gone"]).pem)
    assert fleet_role(tmp_path).evaluate("__pki_constraints") == sorted([*ALL, "DNS:gone"])


def test_a_host_inside_of_what_is_permitted_leaves_the_authority_as_it_is(tmp_path: Path) -> None:
    given = fleet_role(
        tmp_path,
        pki_permitted_names=["example.com", "host1", "host2"],
        pki_permitted_addresses=["192.0.2.0/24"],
    )
    wanted = ["DNS:example.com", "DNS:host1", "DNS:host2", *LOCAL, "IP:192.0.2.0/24"]
    assert given.evaluate("__pki_permitted_wanted") == sorted(wanted)


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({}, False),
        ({"ansible_limit": "host1"}, True),
    ],
)
def test_a_part_of_the_fleet_gets_no_certificate_that_the_rest_would_refuse(
    tmp_path: Path, variables: dict[str, Any], refused: bool
) -> None:
    (tmp_path / "ca.crt").write_text(
        Authority([*LOCAL, "DNS:host1", "DNS:broker.example.com", "IP:192.0.2.10/32"]).pem
    )
    given = fleet_role(tmp_path, pki_names=["new.example.com"], **variables)
    found = refusals(given, "tasks/validate.yml")
    assert ["is to have new.example.com, which hosts outside" in text for text in found] == [True] * refused


def test_the_authority_permits_less_only_when_all_services_show_their_certificates() -> None:
    plays = [
        play["ansible.builtin.import_playbook"].rpartition("/")[2]
        for play in yaml.safe_load((PROJECT / "playbooks" / "site.yml").read_text())
    ]
    order = [plays.index(f"{name}.yml") for name in ("pki", "redis", "flower", "confine", "unlock")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("hosts", "issued", "check", "confined"),
    [
        (["host1", "host2"], ("host1", "192.0.2.10", "broker.example.com", *pki_names.LOOPBACK), False, True),
        (["host1"], ("host1", "192.0.2.10", "broker.example.com", *pki_names.LOOPBACK), False, False),
        (["host1", "host2"], ("host1", "172.17.0.1"), False, False),
        (["host1", "host2"], ("host1", "192.0.2.10", "broker.example.com", *pki_names.LOOPBACK), True, False),
    ],
    ids=["the whole fleet", "a part of it", "a certificate of before", "check mode"],
)
def test_when_the_authority_permits_less(
    tmp_path: Path, hosts: list[str], issued: tuple[str, ...], check: bool, confined: bool
) -> None:
    authority = Authority()
    issue(tmp_path, authority, days=365, names=issued)
    given = fleet_role(tmp_path, ansible_play_hosts=hosts, ansible_check_mode=check)
    (first, *_) = yaml.safe_load((given.path / "tasks/confine.yml").read_text())
    said = first["ansible.builtin.set_fact"]["__pki_confine"]
    assert given.templar.template(trust_as_template(said)) is confined
