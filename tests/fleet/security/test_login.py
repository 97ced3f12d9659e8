# SPDX-License-Identifier: MIT
"""What somebody who guesses Flower's password gets, and what that leaves to the others."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("flower")

# Files of a page, and one that nginx has to ask Flower for.
PAGE = ["/", *(f"/static/css/{number}.css" for number in range(28)), "/api/workers"]


def test_who_guesses_is_stopped(fleet: Fleet) -> None:
    """Beyond so many guesses all get 429, for which no password is hashed; the right one opens soon after."""
    rate = fleet.group("flower")[0].variables["flower_request_rate"]
    guesses = [f"/?guess={number}" for number in range(600)]
    began = time.monotonic()
    answers = fleet.flower.asked(guesses, "GET", (fleet.flower.user, "wrong"))
    found = Counter(status for _, status in answers)
    assert set(found) == {401, 429}
    assert found[401] <= 3 * rate + rate * (time.monotonic() - began) + 1
    assert fleet.flower.get("/api/workers").status == 200


def test_who_reads_pages_is_not(fleet: Fleet) -> None:
    """Three pages in a row, each with all that belongs to it, are no attack."""
    time.sleep(3)  # what others have asked for is forgotten by then
    login = (fleet.flower.user, fleet.flower.password)
    found = {status for _ in range(3) for _, status in fleet.flower.asked(PAGE, "GET", login)}
    assert found == {200, 404}
