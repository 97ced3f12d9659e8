"""The role pki: who a certificate is for, when it is renewed, and which provided ones are refused."""

from __future__ import annotations

import datetime
import ipaddress
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.template import trust_as_template
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.rendering import Role

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
    return Role("pki", **(given | variables))


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


def test_a_certificate_is_for_every_name_and_address() -> None:
    given = role(pki_names=["redis.example.com"], pki_addresses=["198.51.100.7"])
    assert sorted(given.evaluate("__pki_subject_alternative_names")) == [
        "DNS:host1",
        "DNS:host1.example.com",
        "DNS:localhost",
        "DNS:redis.example.com",
        "IP:10.0.0.1",
        "IP:127.0.0.1",
        "IP:192.0.2.10",
        "IP:198.51.100.7",
        "IP:2001:db8::10",
        "IP:::1",
        "IP:fd00::1",
    ]


def test_addresses_that_come_and_go_can_be_left_out() -> None:
    given = role(pki_host_addresses=False)
    assert given.evaluate("__pki_called_addresses") == ["127.0.0.1", "192.0.2.10", "::1"]


@pytest.mark.parametrize(
    ("called", "entry"),
    [
        ("broker.example.com", "DNS:broker.example.com"),
        ("2001:DB8::1", "IP:2001:db8::1"),
        ("::ffff:192.0.2.1", "IP:::ffff:192.0.2.1"),
        ("cafe", "DNS:cafe"),
        ("10.example.com", "DNS:10.example.com"),
    ],
)
def test_an_address_of_the_inventory_may_be_a_name(called: str, entry: str) -> None:
    assert entry in role(ansible_host=called).evaluate("__pki_subject_alternative_names")


@pytest.mark.parametrize(("days", "due"), [(29, True), (31, False), (-1, True)])
def test_a_certificate_is_renewed_inside_the_window(tmp_path: Path, days: int, due: bool) -> None:
    hosts = tmp_path / "hosts"
    hosts.mkdir()
    write_certificate(hosts, days + 0.5, "host1")
    (hosts / "host.crt").rename(hosts / "host1.crt")
    assert role(pki_ca_dir=str(tmp_path)).evaluate("__pki_issued_due") is due


def certified(directory: Path, days: float = 90, **record: Any) -> bool:
    """Return whether a host counts as certified that was signed for what this record has otherwise."""
    (directory / "hosts").mkdir()
    for target, valid in (("ca", 3650), ("hosts/host1", days)):
        write_certificate(directory, valid, "host1")
        (directory / "host.crt").rename(directory / f"{target}.crt")
    given = role(pki_ca_dir=str(directory))
    signed = {name: given.evaluate(f"__pki_signed.{name}") for name in given.evaluate("__pki_signed")}
    (directory / "hosts/host1.json").write_text(json.dumps(signed | record))
    return bool(given.evaluate("__pki_certified"))


def test_what_was_signed_is_not_signed_again(tmp_path: Path) -> None:
    assert certified(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        {"form": {"subject_alt_name": ["DNS:host1"]}},
        {"authority": "Another CA"},
        {"authority_key": "00:11"},
        {"days": 10},
    ],
)
def test_what_was_signed_for_something_else_is_signed_again(tmp_path: Path, record: dict[str, Any]) -> None:
    assert not certified(tmp_path, **record)


def test_what_is_about_to_end_is_signed_again(tmp_path: Path) -> None:
    assert not certified(tmp_path, days=29)


def test_without_a_record_it_is_signed_again(tmp_path: Path) -> None:
    """Such as by a run that was interrupted before that."""
    certified(tmp_path)
    (tmp_path / "hosts/host1.json").unlink()
    assert role(pki_ca_dir=str(tmp_path)).evaluate("__pki_certified") is False


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
        ({"pki_ca_passphrase": ""}, "pki_ca_passphrase: set at least 16"),
        ({"pki_ca_passphrase": "short"}, "pki_ca_passphrase: set at least 16"),
        ({"pki_days": 30}, "pki_renew_days (30) must be less than pki_days (30)"),
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
    )


@pytest.mark.parametrize(
    ("days", "names", "begins", "message"),
    [
        (90, ["host1"], -1, ""),
        (90, ["other.example.com", "192.0.2.10"], -1, ""),
        (90, ["*.example.com"], -1, ""),
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
    found = refusals(provided(tmp_path), "tasks/provided.yml")
    assert [message in text for text in found] == ([True] if message else [])


def test_a_provided_certificate_with_another_key_is_refused(tmp_path: Path) -> None:
    write_certificate(tmp_path, 90, "host1")
    certificate = (tmp_path / "host.crt").read_bytes()
    write_certificate(tmp_path, 90, "host1")
    (tmp_path / "host.crt").write_bytes(certificate)
    assert refusals(provided(tmp_path), "tasks/provided.yml") == ["it belongs to another key"]


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
    assert certified(tmp_path)
    (tmp_path / "next").mkdir()
    write_certificate(tmp_path / "next", 3650, "host1")
    (tmp_path / "next" / "host.crt").rename(tmp_path / "next" / "ca.crt")
    for step, done in (("begun", True), ("switched", False), ("ending", False)):
        (tmp_path / "rotation").write_text(step)
        assert role(pki_ca_dir=str(tmp_path)).evaluate("__pki_certified") is done


def test_a_certificate_is_replaced_on_request(tmp_path: Path) -> None:
    assert certified(tmp_path)
    assert role(pki_ca_dir=str(tmp_path), pki_replace=True).evaluate("__pki_certified") is False


def test_a_step_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    (found,) = refusals(authorities(tmp_path, "half"), "tasks/validate.yml")
    assert f"{tmp_path}/rotation must have one of begun, switched, ending" in found


def test_what_was_provided_is_not_replaced() -> None:
    own = {f"pki_provided_{name}_file": f"/{name}" for name in ("ca", "cert", "key")}
    (found,) = refusals(role(**own, pki_replace=True), "tasks/validate.yml")
    assert "one of your own" in found
