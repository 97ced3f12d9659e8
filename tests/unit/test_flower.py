# SPDX-License-Identifier: MIT
"""The role flower: what it writes, and whether systemd, Flower and nginx's rules take it as it is meant."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.celery.plugins.filter.flower import password_hash
from flower.options import default_options
from passlib.hash import sha512_crypt

from tests.unit.rendering import PROJECT, Role

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = 'it\'s "50%" of $HOME, `id`\\ @:/#ü'
GIVEN: dict[str, Any] = {
    "flower_app_name": "demo",
    "flower_broker_url": "rediss://flower:s3cret@broker:6379/0",
    "flower_password": PASSWORD,
    "flower_tls_ca_file": "/etc/fleet/tls/ca.crt",
    "flower_tls_cert_file": "/etc/fleet/tls/host.crt",
    "flower_tls_key_file": "/etc/fleet/tls/host.key",
    "ansible_facts": {"all_ipv6_addresses": ["fe80::1"]},
    "ansible_check_mode": False,
}


def role(**variables: Any) -> Role:
    """Return the role as this fleet calls it, with some variables set otherwise."""
    return Role("flower", **{**GIVEN, **variables})


@pytest.fixture
def site() -> str:
    """Return the site without its comments."""
    return re.sub(r"#.*", "", role().template("sites-available/flower.conf.j2"))


@pytest.fixture
def unit_file(tmp_path: Path) -> Path:
    """Write the unit as on a host, but with a program and a user that exist here."""
    file = tmp_path / "flower.service"
    text = role().template("flower.service.j2")
    file.write_text(
        text.replace("/opt/celery/fleet/current/bin/celery", "/bin/true").replace("=flower\n", "=root\n")
    )
    return file


@pytest.fixture
def nginx_file(tmp_path: Path) -> Path:
    """Write nginx's unit, as Debian has it, with the role's drop-in."""
    file = tmp_path / "nginx.service"
    start = "[Service]\nType=forking\nPIDFile=/run/nginx.pid\nExecStart=/bin/true\nExecReload=/bin/true\n"
    file.write_text(start + role().template("nginx.service.d/flower.conf.j2"))
    return file


@pytest.mark.parametrize("name", ["unit_file", "nginx_file"])
def test_systemd_takes_the_units(request: pytest.FixtureRequest, name: str) -> None:
    """`systemd-analyze verify` finds no unknown or misplaced setting."""
    file = request.getfixturevalue(name)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "budget"), [("unit_file", 20), ("nginx_file", 45)])
def test_the_sandboxes_keep_their_budget(request: pytest.FixtureRequest, name: str, budget: int) -> None:
    """`systemd-analyze security` rates the exposure in tenths; 100 is a service without a sandbox."""
    file = request.getfixturevalue(name)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={budget}", "--no-pager", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_addresses_are_all_or_those_that_are_named() -> None:
    """Flower reaches what nodes may reach."""
    assert "IPAddress" not in role().template("flower.service.j2")
    text = role(flower_ip_allow=["192.0.2.1"]).template("flower.service.j2")
    assert {"IPAddressDeny=any", "IPAddressAllow=192.0.2.1"} <= set(text.splitlines())


BOUNDS = ("MemoryMax", "MemorySwapMax", "TasksMax", "LogRateLimitIntervalSec", "LogRateLimitBurst")


def test_flower_is_bounded() -> None:
    """It shows whatever comes."""
    lines = role().template("flower.service.j2").splitlines()
    found = dict(line.split("=", 1) for line in lines if line.startswith(BOUNDS))
    assert found == dict(zip(BOUNDS, ("512M", "0", "1024", "10", "100000"), strict=True))
    assert "TasksMax=99\n" in role(flower_tasks_max=99).template("flower.service.j2")


def test_the_units_hold_no_secret(unit_file: Path, site: str) -> None:
    """Everybody may read a unit and a site."""
    assert not re.search(f"s3cret|{re.escape(PASSWORD)}", unit_file.read_text() + site)


@pytest.mark.parametrize(
    ("described", "environment", "own"),
    [
        (
            True,
            "/etc/celery/fleet.env",
            ["/opt/celery/fleet/current", "/opt/celery/demo/current/fleet-app.json"],
        ),
        (False, "/etc/celery/app.env", ["/opt/celery/demo/current"]),
    ],
)
def test_the_unit_compares_what_it_reads(*, described: bool, environment: str, own: list[str]) -> None:
    """Each file that shapes Flower is in the fingerprint, and root alone may write that.

    Flower runs from the fleet's own venv, without the environment of the app; of a release that has no
    description of its app, it runs from the release.
    """
    lines = role(flower_app_described=described).template("flower.service.j2").splitlines()
    fingerprint = next(line for line in lines if "sha256sum" in line)
    read = [line.partition("=")[2] for line in lines if line.startswith("EnvironmentFile=")]
    assert read == [environment, "/etc/celery/flower.env"]
    venv, *files = own
    assert f"ExecStart={venv}/bin/celery -A fleet_runtime.app flower" in lines
    read += [
        "/etc/celery/flowerconfig.py",
        "/etc/systemd/system/flower.service",
        f"{venv}/release.json",
        *files,
    ]
    assert fingerprint == f"ExecStartPre=+/bin/sh -c 'exec sha256sum {' '.join(read)} >/run/flower.started'"


def test_flower_knows_every_option() -> None:
    """Flower ignores a variable that is none of its options, so a misspelt one would do nothing."""
    variables = role(flower_settings={"natural_time": True}).evaluate("__flower_variables")
    options = {name.removeprefix("FLOWER_").lower() for name in variables if name.startswith("FLOWER_")}
    assert "natural_time" in options
    # the last one is no option, Flower reads it from the environment itself
    assert {name for name in options if name not in default_options} == {"unauthenticated_api"}


def test_flower_has_no_port_and_no_password() -> None:
    """Its socket is the only way in, and the password is nginx's business."""
    variables = role().evaluate("__flower_variables")
    assert variables["FLOWER_UNIX_SOCKET"] == "/run/flower/flower.sock"
    assert not {"FLOWER_PORT", "FLOWER_ADDRESS", "FLOWER_BASIC_AUTH"} & set(variables)
    assert PASSWORD not in variables.values()


def test_the_role_owns_the_options_that_it_sets() -> None:
    """An option of the role's cannot be set past its variable."""
    names = set(role().evaluate("__flower_options")) - {"unauthenticated_api"}
    assert names <= set(role().evaluate("__flower_owned_settings"))
    assert role(flower_settings={"db": "/var/x"}).evaluate("__flower_variables")["FLOWER_DB"] != "/var/x"


def test_the_hash_is_of_the_password_and_stays() -> None:
    """The file is the same in every run, cheap for nginx to check, and different on another host."""
    value = role().evaluate("__flower_hash")
    assert sha512_crypt.verify(PASSWORD, value)
    assert value == role().evaluate("__flower_hash")
    assert value != role(flower_username="other").evaluate("__flower_hash")
    assert sha512_crypt.from_string(value).rounds == 1000


def test_a_password_that_would_be_cut_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "ü" * 128
    assert sha512_crypt.verify(longest, password_hash(longest, "salt", 1000))
    with pytest.raises(AnsibleFilterError, match="more than 256 bytes"):
        password_hash(f"{longest}x", "salt", 1000)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(AnsibleFilterError, match="needs the program openssl"):
        password_hash("x", "salt", 1000)


def test_who_guesses_passwords_is_stopped_before_one_is_hashed(site: str) -> None:
    """By a rate that a page of Flower does not reach; nothing is put off, which would slow its own pages."""
    assert re.search(
        r"^limit_req_zone \$binary_remote_addr zone=flower_requests:\S+ rate=30r/s;$", site, re.MULTILINE
    )
    for line in (
        "limit_req zone=flower_requests burst=90 nodelay;", "limit_req_status 429;",
        "limit_conn flower_connections 50;", "client_header_timeout 10s;", "client_body_timeout 10s;",
    ):  # fmt: skip
        assert site.count(f"    {line}\n") == 1
        assert site.index(line) < site.index("location ")


def test_requests_may_have_no_limit() -> None:
    """A proxy in front of nginx is one address for all its users."""
    site = role(flower_request_rate=0).template("sites-available/flower.conf.j2")
    assert "limit_" not in site
    assert "client_header_timeout 10s;" in site


def test_no_location_is_without_the_password(site: str) -> None:
    """The password is asked for by the server, and nothing turns that off for a path."""
    assert site.count("auth_basic ") == 1
    assert site.index("auth_basic ") < site.index("location ")
    assert "auth_basic off" not in site
    assert "satisfy" not in site


def test_the_listeners_have_tls() -> None:
    """Each address that nginx listens on has TLS; IPv6 only where the host has it."""
    every = re.findall(r"listen (.*);", role().template("sites-available/flower.conf.j2"))
    assert every == ["*:5555 ssl", "[::]:5555 ssl"]
    none = role(ansible_facts={"all_ipv6_addresses": []}).template("sites-available/flower.conf.j2")
    assert re.findall(r"listen (.*);", none) == ["*:5555 ssl"]
    some = role(flower_bind=["10.0.0.1", "[::1]"], flower_port=443).template("sites-available/flower.conf.j2")
    assert re.findall(r"listen (.*);", some) == ["10.0.0.1:443 ssl", "[::1]:443 ssl"]


@pytest.mark.parametrize(
    ("method", "site_header", "origin", "foreign"),
    [
        ("GET", "cross-site", "", False),  # a link in a mail
        ("HEAD", "", "https://evil", False),
        ("POST", "", "", False),  # curl
        ("POST", "none", "", False),
        ("POST", "same-origin", "https://fl1:5555", False),
        ("POST", "", "https://fl1:5555", False),  # an old browser
        ("POST", "same-site", "https://fl1:8000", True),
        ("POST", "cross-site", "https://evil", True),
        ("POST", "cross-site", "https://fl1:5555", True),
        ("POST", "", "https://evil", True),
        ("POST", "", "null", True),
        ("POST", "", "http://fl1:5555", True),
        ("POST", "", "https://fl1:55550", True),
        ("GETS", "cross-site", "https://evil", True),
        ("DELETE", "", "https://evil", True),
    ],
)
def test_requests_of_other_sites_are_refused(
    site: str, method: str, site_header: str, origin: str, foreign: bool
) -> None:
    """What may change something comes from a page of this server, or from no browser."""
    rules = re.findall(r'^ +"?(~\S+|default)"? +([01]);', site.partition("server {")[0], re.MULTILINE)
    assert rules[0][0] == "default"
    key = f"{method}|{site_header}|{origin}|https://fl1:5555"
    # nginx takes the first expression that matches (its quotes are not part of it), else the default
    matching = [value for rule, value in rules[1:] if re.search(rule[1:].rstrip('"'), key)]
    assert (matching or [rules[0][1]])[0] == str(int(foreign))


def test_a_candidate_of_the_site_gets_a_whole_configuration() -> None:
    """The check is one shell command; `%s` is the candidate's path, once."""
    shell, option, script = shlex.split(role().evaluate("__flower_site_check"))
    assert (shell, option) == ("/bin/sh", "-c")
    assert script.count("%") == 1
    subprocess.run([shell, "-n", option, script % "/var/site"], check=True)


@pytest.mark.parametrize(
    ("bind", "host"),
    [
        ([], "127.0.0.1"),
        (["0.0.0.0", "[::]"], "127.0.0.1"),
        (["10.0.0.1"], "10.0.0.1"),
        (["*", "[::1]"], "[::1]"),
    ],
)
def test_the_health_check_asks_where_nginx_listens(bind: list[str], host: str) -> None:
    """By default it needs no name that the host may not know."""
    assert role(flower_bind=bind).evaluate("__flower_url") == f"https://{host}:5555"


def test_entry_points_ask_for_what_they_use() -> None:
    """Health and restart are run without the rest of the role, so they check their own variables."""
    specs = yaml.safe_load((PROJECT / "roles/flower/meta/argument_specs.yml").read_text())["argument_specs"]
    tasks = (PROJECT / "roles/flower/tasks/health.yml").read_text()
    used = set(re.findall(r"\{\{ (flower_\w+)", tasks))
    used |= {"flower_bind", "flower_health_host", "flower_port"}  # in the URL
    for entry in ("health", "restart"):
        assert used <= set(specs[entry]["options"])


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("host1", True),
        ("192.0.2.10", True),
        ("[2001:db8::7]", True),
        ("flower.example.com", True),
        ("flowerxexample.com", False),
        ("host1.evil.example", False),
        ("evil.example", False),
    ],
)
def test_only_what_the_certificate_is_for_may_be_asked_for(host: str, taken: bool) -> None:
    names = ["192.0.2.10", "2001:db8::7", "Flower.example.com", "host1"]
    text = role(flower_names=names).template("sites-available/flower.conf.j2")
    (pattern,) = re.findall(r'map \$host .*?"~(.*?)" 0;', text, re.DOTALL)
    assert bool(re.search(pattern, host)) is taken
    assert "return 421;" in text


def test_any_name_may_be_asked_for_where_the_certificate_is_one_of_your_own() -> None:
    assert "$host" not in role().template("sites-available/flower.conf.j2")
