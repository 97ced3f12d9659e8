# SPDX-License-Identifier: MIT
"""The packages that not every process needs: extras of the wheel."""

from __future__ import annotations

from importlib.util import find_spec

from fleet_runtime.errors import FleetError

#: By extra: the module by which its package is found, and the package.
PACKAGES = {
    "flower": ("flower", "flower"),
    "gevent": ("gevent", "gevent"),
    "redbeat": ("redbeat", "celery-redbeat"),
    "rich": ("rich", "rich"),
}


def require(extra: str, purpose: str) -> None:
    """Make sure that the package of an extra is installed.

    Args:
        extra: Its name.
        purpose: What needs the package, as the subject of a sentence.

    Raises:
        FleetError: It is not installed; the message names the extra.
    """
    module, package = PACKAGES[extra]
    if find_spec(module) is None:
        raise FleetError(
            f"{purpose} needs {package}, which is not installed: install celery-fleet-runtime[{extra}]."
        )
