# SPDX-License-Identifier: MIT
"""Each program names its licence: GPL-3.0-or-later for modules and what they load, MIT for the rest."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
GPL = ("plugins/modules/", "plugins/module_utils/")
SPDX = re.compile(r"^# SPDX-License-Identifier: (\S+)$", re.MULTILINE)
# The words by which `ansible-test sanity` knows the licence of a module.
NOTICE = "GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)"
HEAD = 5  # lines of a file in which its licence stands


def heads() -> dict[str, str]:
    """Return the first lines of each file in Python and of each script of a shell, by its path."""
    listing = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    found = {}
    for name in listing.splitlines():
        file = ROOT / name
        if not file.is_file() or file.suffix == ".j2":
            continue
        with file.open("rb") as content:
            head = b"".join(content.readline() for _ in range(HEAD)).decode(errors="replace")
        if file.suffix in {".py", ".pyi"} or (not file.suffix and re.match(r"#!.*(python|/(ba)?sh\b)", head)):
            found[name] = head
    return found


def test_each_program_names_its_licence() -> None:
    """A file without a line, or with that of another licence, is named."""
    wrong = {}
    for name, head in heads().items():
        wanted = "GPL-3.0-or-later" if name.startswith(GPL) else "MIT"
        if SPDX.findall(head) != [wanted]:
            wrong[name] = f"needs `# SPDX-License-Identifier: {wanted}` in its first {HEAD} lines"
    assert not wrong


def test_modules_have_the_notice_of_their_licence() -> None:
    """Sanity wants it in words."""
    assert not [name for name, head in heads().items() if name.startswith(GPL) and NOTICE not in head]


def test_the_texts_of_the_licences_are_here() -> None:
    """LICENSE is MIT's, COPYING is that of the GPL."""
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    assert (ROOT / "app" / "runtime" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 3" in (ROOT / "COPYING").read_text()


def test_the_collection_names_both() -> None:
    """galaxy.yml has the identifiers of SPDX."""
    assert set(yaml.safe_load((ROOT / "galaxy.yml").read_text())["license"]) == {"GPL-3.0-or-later", "MIT"}
