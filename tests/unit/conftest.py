"""Let the tests import the modules' shared code as the modules do: from ansible.module_utils."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

# On a host Ansible lays plugins/module_utils into its own package; here the package looks there as well.
ansible.module_utils.__path__.append(str(Path(__file__).parents[2] / "plugins" / "module_utils"))
