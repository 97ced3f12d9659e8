# SPDX-License-Identifier: MIT
"""The role pki's filters: whom certificates are for, and whether one that was issued is as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.fleet.celery.plugins.module_utils import pki_certificate, pki_names
from ansible_collections.fleet.celery.plugins.module_utils.pki_names import Called

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Fleet = Mapping[str, Mapping[str, Any]]


def names(called: Mapping[str, Any], more: Iterable[str] = ()) -> list[str]:
    """Return the names and addresses of a host's certificate.

    Args:
        called: How the inventory calls it: an entry of what the action pki_fleet returns.
        more: Other names and addresses.
    """
    return sorted({*Called.from_dict(called).certified, *pki_names.names(more)})


def identifying(given: Iterable[str]) -> list[str]:
    """Return names, and wildcards over them, of which a certificate of the operator's own has to have one."""
    entries = []
    for name in pki_names.names(given):
        is_name = pki_names.address(name) is None
        entries.append(f"{'DNS' if is_name else 'IP'}:{name}")
        if is_name and "." in name:
            entries.append(f"DNS:*.{name.partition('.')[2]}")
    return entries


def permitted(given: Fleet, domains: Iterable[str], networks: Iterable[str]) -> list[str]:
    """Return what the authority permits: see `pki_names.permitted`."""
    return list(pki_names.permitted(map(Called.from_dict, given.values()), domains, networks))


def constraints(pem: str) -> list[str]:
    """Return what the certificate of an authority permits; nothing if it permits all."""
    return list(pki_certificate.constraints(pki_certificate.certificate(pem)))


def widened(now: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return what an authority permits that is to permit more, and still all that it does."""
    return list(pki_names.least({*now, *wanted}))


def beyond(given: Iterable[str], limits: Iterable[str]) -> list[str]:
    """Return the names and addresses that an authority with these limits does not permit."""
    return list(pki_certificate.beyond_limits(given, limits))


def differences(pem: str, host: str, called_by: Iterable[str], days: int, authority: str) -> list[str]:
    """Return in what a certificate differs from what it has to say: see `pki_certificate.differences`."""
    form = pki_certificate.Form(host, tuple(called_by), days)
    return list(pki_certificate.differences(pem, form, authority))


class FilterModule:
    """The filters' names in Jinja."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "pki_names": names,
            "pki_identifying": identifying,
            "pki_permitted": permitted,
            "pki_constraints": constraints,
            "pki_widened": widened,
            "pki_beyond": beyond,
            "pki_differences": differences,
            "pki_opens": pki_certificate.opens,
        }
