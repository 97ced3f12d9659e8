# SPDX-License-Identifier: MIT
"""What is blotted out of messages: secrets, and not what makes a message readable."""

from __future__ import annotations

from ansible_collections.fleet.celery.plugins.module_utils.blotted import secrets_among


def test_short_values_and_paths_of_the_index_are_shown() -> None:
    settings = {"SSL_CERT_FILE": "/etc/ssl/company.pem", "UV_HTTP_TIMEOUT": 30, "TOKEN": "aB3xY7aB3xY7"}
    values = {"/etc/ssl/company.pem", "30", "aB3xY7aB3xY7", "prod", "https://me:secret@index.example.org"}
    assert secrets_among(values, settings.values()) == {"aB3xY7aB3xY7", "https://me:secret@index.example.org"}


def test_a_path_in_the_environment_of_an_app_may_be_a_secret() -> None:
    assert secrets_among({"/a/secret/path"}) == {"/a/secret/path"}
