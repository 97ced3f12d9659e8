# SPDX-License-Identifier: MIT
"""The option kernel of fleet_files: values are set where the kernel lets one, and left alone where not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.module_utils import kernel_values

if TYPE_CHECKING:
    from pathlib import Path


def value(path: Path, **given: Any) -> dict[str, Any]:
    """Return one item of the module's argument."""
    return {"path": str(path), "value": "1", "accept": [], "reason": "Redis likes it"} | given


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("1\n", "1"), ("always [madvise] never\n", "madvise"), ("[always] madvise never", "always")],
)
def test_a_value_is_read(text: str, meaning: str) -> None:
    assert kernel_values.current(text) == meaning


@pytest.mark.parametrize("check", [False, True])
def test_a_value_is_set(tmp_path: Path, check: bool) -> None:
    file = tmp_path / "overcommit_memory"
    file.write_text("0\n")
    assert kernel_values.set_values([value(file)], check=check) == ([str(file)], {})
    assert file.read_text() == ("0\n" if check else "1")


def test_a_value_that_is_as_good_stays(tmp_path: Path) -> None:
    file = tmp_path / "enabled"
    file.write_text("always madvise [never]\n")
    asked = value(file, value="madvise", accept=["never"])
    assert kernel_values.set_values([asked], check=False) == ([], {})


def test_a_value_that_cannot_be_set_is_left_alone_and_the_others_are_set(tmp_path: Path) -> None:
    file = tmp_path / "overcommit_memory"
    file.write_text("0\n")
    missing = tmp_path / "missing"
    changed, refused = kernel_values.set_values([value(missing), value(file)], check=False)
    assert changed == [str(file)]
    assert list(refused) == [str(missing)]
    assert "Set it to 1 on the machine, if you can: Redis likes it." in refused[str(missing)]
