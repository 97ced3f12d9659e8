# SPDX-License-Identifier: MIT
"""Make the secrets of a test environment as hard to carry as an operator's may be.

Every secret in the vault gets all the characters that URLs, shells, systemd and configuration files treat
specially. A secret that has them already stays as it is.  Usage: hostile_secrets.py VAULT_FILE PASSWORD_FILE
"""

from __future__ import annotations

import json
import subprocess
import sys

import yaml

HOSTILE = "#{} ' \" $HOME ${{HOME}} \\ `id` %s %% 50% @:/?&=;,~*<>|! #\\"


def main(vault: str, password_file: str) -> None:
    """Rewrite the vault."""
    password = f"--vault-password-file={password_file}"
    shown = subprocess.run(
        ["ansible-vault", "view", password, vault], check=True, capture_output=True, text=True
    )
    content = yaml.safe_load(shown.stdout)
    secrets = content["fleet_secrets"]
    content["fleet_secrets"] = {
        name: secret if HOSTILE[-8:] in secret else HOSTILE.format(secret) for name, secret in secrets.items()
    }
    encrypt = ["ansible-vault", "encrypt", password, "--encrypt-vault-id=default", f"--output={vault}", "-"]
    subprocess.run(encrypt, input=json.dumps(content), check=True, text=True, capture_output=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
