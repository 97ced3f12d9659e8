# SPDX-License-Identifier: MIT
"""Write each role's table of variables into its README.md, from meta/argument_specs.yml.

Usage: tools/role_docs.py [--check]     --check: write nothing, and fail if a README is not up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[1] / "roles"
BEGIN, END = "<!-- BEGIN variables -->", "<!-- END variables -->"
MARKUP = re.compile(r"\b[CVIOBME]\(([^)]*)\)")


def text(description: Any) -> str:
    """Return a description as Markdown for a cell of a table."""
    words = " ".join(description) if isinstance(description, list) else str(description)
    return MARKUP.sub(r"`\1`", " ".join(words.split())).replace("|", "\\|")


def kind(option: dict[str, Any]) -> str:
    """Return the type of an option, with that of its elements or its choices."""
    name = str(option["type"])
    if "elements" in option:
        name += f" of {option['elements']}"
    if "choices" in option:
        name += ": " + ", ".join(f"`{choice}`" for choice in option["choices"])
    return name


def default(option: dict[str, Any], given: Any) -> str:
    """Return the default of an option: of the specification, or the expression in defaults/main.yml."""
    if option.get("required"):
        return "required"
    value = option.get("default", given)
    if value is None:
        return ""
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    shown = dumped.removesuffix("\n").removesuffix("\n...").replace("|", "\\|")
    return f"`{shown}`"


def rows(options: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the lines of a table for some options, and for those that they consist of."""
    lines = []
    for name, option in options.items():
        lines.append(
            f"| `{prefix}{name}` | {kind(option)} | {default(option, defaults.get(name))} "
            f"| {text(option['description'])} |"
        )
        if "options" in option:
            lines += rows(option["options"], {}, f"{prefix}{name}.")
    return lines


def table(options: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Return the table of an entry point's options."""
    return "\n".join(
        ["| name | type | default | what it is |", "|---|---|---|---|", *rows(options, defaults)]
    )


def section(role: Path) -> str:
    """Return the generated part of a role's README."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    file = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(file.read_text()) or {}) if file.exists() else {}
    parts = [table(specs["main"]["options"], defaults)]
    specs |= {path.stem: yaml.safe_load(path.read_text()) for path in data_types(role)}
    known = set(specs["main"]["options"])
    for name, spec in specs.items():
        own = {key: option for key, option in (spec.get("options") or {}).items() if key not in known}
        if name != "main" and own:
            parts.append(f"`{name}`: {text(spec['short_description'])}.\n\n{table(own, defaults)}")
    return "\n\n".join(parts)


def data_types(role: Path) -> list[Path]:
    """Return the files that describe a kind of value, such as a pool, as a specification describes a role."""
    known = {"argument_specs.yml", "main.yml"}
    return sorted(path for path in (role / "meta").glob("*.yml") if path.name not in known)


def updated(role: Path) -> str:
    """Return a role's README with its generated part as it should be.

    Raises:
        ValueError: The README has no place for it.
    """
    readme = (role / "README.md").read_text()
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"{role.name}/README.md must have {BEGIN} and {END}, once each")
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{section(role)}\n\n{END}{after}"


def main() -> int:
    """Write, or check, every role's README."""
    check = "--check" in sys.argv[1:]
    stale = []
    for role in sorted(path for path in ROLES.iterdir() if (path / "meta" / "argument_specs.yml").exists()):
        readme = role / "README.md"
        if readme.read_text() != (text_now := updated(role)):
            stale.append(str(readme.relative_to(ROLES.parent)))
            if not check:
                readme.write_text(text_now)
    if stale:
        print(f"{'Not up to date; run `make docs`' if check else 'Written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
