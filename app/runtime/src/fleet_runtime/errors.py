# SPDX-License-Identifier: MIT
"""The one kind of error that the runtime raises on its own account."""


class FleetError(Exception):
    """The process cannot do what it was started for; the message is one sentence for the operator."""
