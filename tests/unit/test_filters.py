# SPDX-License-Identifier: MIT
"""The project's filters, whose output is parsed as its readers do."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import pytest
from ansible_collections.fleet.celery.plugins.filter import celery_worker, fleet
from ansible_collections.fleet.celery.plugins.module_utils.systemd_env import env_file
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.url import parse_url
from redis.connection import parse_url as redis_parse_url

HOSTILE = "' \" $HOME ${HOME} \\ `id` %s %% 50% @:/?&=;,~*<>|! #"


def read_environment_file(text: str) -> dict[str, str]:
    """Read a systemd EnvironmentFile as systemd does, for values in double quotes.

    Source: parse_env_file_internal in src/basic/env-file.c: in double quotes a backslash takes away the
    meaning of the next character if that is one of SHELL_NEED_ESCAPE, and stays otherwise.
    """
    found, rest = {}, text
    while rest:
        name, _, rest = rest.partition('="')
        value = ""
        while rest[0] != '"':
            if rest[0] == "\\":
                rest = rest[1:]
                if rest[0] not in '"\\`$':
                    value += "\\"
            value, rest = value + rest[0], rest[1:]
        assert rest[1] == "\n", f"the value ends early: {rest}"
        found[name], rest = value, rest[2:]
    return found


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_an_environment_file_carries_any_value(value: str) -> None:
    assert read_environment_file(env_file({"NAME": value, "O": "x"})) == {"NAME": value, "O": "x"}


@pytest.mark.parametrize(
    "value", ["-----BEGIN KEY-----\nAA==\n-----END KEY-----\n", 'a"\nB="1', "a\\\nB=1", "\n\t\n"]
)
def test_an_environment_file_carries_line_breaks_and_none_forges_a_variable(value: str) -> None:
    assert read_environment_file(env_file({"NAME": value})) == {"NAME": value}


def test_an_environment_file_has_yaml_values_as_programs_expect_them() -> None:
    given = {"B": True, "A": 5, "C": "", "D": ["json", "yaml"], "E": None}
    assert env_file(given) == 'A="5"\nB="true"\nC=""\nD="json,yaml"\nE=""\n'


def test_an_environment_file_refuses_what_no_environment_carries() -> None:
    with pytest.raises(ValueError, match="the value of NAME has the character NUL") as refused:
        env_file({"NAME": "CANARY\0"})
    assert "CANARY" not in str(refused.value)


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A-B", "A\n"])
def test_an_environment_file_refuses_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        env_file({name: "value"})


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_url_carries_any_password(password: str) -> None:
    url = fleet.redis_url("worker", password, "broker", 6379, 2, "/etc/fleet/tls/ca.crt")
    assert redis_parse_url(url)["password"] == password
    assert parse_url(url)["password"] == password
    assert "\n" not in url


def test_a_url_has_all_that_a_client_needs() -> None:
    url = fleet.redis_url("worker", HOSTILE, "192.0.2.11", 6380, 2, "/etc/fleet/tls/ca.crt")
    read = redis_parse_url(url)
    assert (read["username"], read["password"], read["host"], read["port"], read["db"]) == (
        "worker", HOSTILE, "192.0.2.11", 6380, 2,
    )  # fmt: skip
    assert (read["ssl_cert_reqs"], read["ssl_ca_certs"]) == ("required", "/etc/fleet/tls/ca.crt")


def test_a_url_has_an_ipv6_address_in_brackets() -> None:
    url = fleet.redis_url("worker", "pw", "2001:db8::1", 6379, 0, "/ca")
    assert urlsplit(url).hostname == "2001:db8::1"


@given(st.text())
def test_a_url_without_its_password_is_the_same_but_for_that(password: str) -> None:
    """Of whatever characters the password is."""
    url, none = (
        fleet.redis_url("ops", word, "redis1", 6379, 0, "/etc/fleet/tls/ca.crt")
        for word in (password, "none")
    )
    assert fleet.without_password(url) == none


def test_addresses_are_all_or_those_that_are_named() -> None:
    """The host itself is always among them."""
    assert fleet.addresses([]) == []
    assert fleet.addresses(["10.0.0.0/8"]) == [
        "IPAddressDeny=any",
        "IPAddressAllow=127.0.0.0/8", "IPAddressAllow=::1/128", "IPAddressAllow=10.0.0.0/8",
    ]  # fmt: skip


def test_only_some_secrets_are_passwords_of_redis() -> None:
    secrets = {"redis_web": "a", "flower": "b", "pki_ca": "c", "redis_admin": "d"}
    assert fleet.redis_passwords(secrets) == {"web": "a", "admin": "d"}


def test_nodes_are_named_by_pool_number_and_host() -> None:
    nodes = celery_worker.nodes({"b": {"queues": ["x"]}, "a": {"queues": ["y"], "nodes": 2}}, "host1")
    assert [(node["name"], node["node"]) for node in nodes] == [
        ("a-1", "a-1@host1"), ("a-2", "a-2@host1"), ("b-1", "b-1@host1"),
    ]  # fmt: skip


def test_a_pool_of_no_nodes_has_none() -> None:
    assert celery_worker.nodes({"a": {"queues": ["y"], "nodes": 0}}, "host1") == []


def test_queues_are_sorted_and_each_is_there_once() -> None:
    assert fleet.queues([{"a": {"queues": ["y", "x"]}}, {"b": {"queues": ["x"]}}]) == ["x", "y"]


def test_the_sandbox_opens_only_what_is_asked_for() -> None:
    closed, opened = fleet.sandbox(), fleet.sandbox(["/srv/data"], jit=True)
    assert "MemoryDenyWriteExecute=yes" in closed
    assert "ReadWritePaths" not in closed
    assert "MemoryDenyWriteExecute=no" in opened
    assert "ReadWritePaths=/srv/data" in opened
    assert os.linesep.join(line for line in closed.splitlines() if not line.strip()) == ""
