# SPDX-License-Identifier: MIT
"""Names of the headers and properties that the runtime adds to messages."""

# Header of a message that was requeued because the node that held it had died.
RECOVERED = "fleet_recovered"
