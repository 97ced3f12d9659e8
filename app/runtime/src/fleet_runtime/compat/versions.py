# SPDX-License-Identifier: MIT
"""The releases of Celery and of kombu whose insides the runtime knows, and changes.

With any other release nothing is changed, and the node's log has what that means.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger(__name__)

RELEASES = {
    "celery": frozenset({"5.7.0"}),
    "kombu": frozenset({"5.7.0"}),
    "billiard": frozenset({"4.3.2"}),
    "redis": frozenset({"8.1.0"}),
}


def is_known(package: ModuleType, otherwise: str) -> bool:
    """Return whether a package is of a known release; if it is not, say what that means.

    Args:
        package: celery, kombu or billiard.
        otherwise: A sentence.
    """
    name, known = package.__name__, RELEASES[package.__name__]
    if package.__version__ in known:
        return True
    logger.warning(
        "%s This is %s %s, and this release of the runtime knows %s.",
        otherwise, name, package.__version__, ", ".join(sorted(known)),
    )  # fmt: skip
    return False
