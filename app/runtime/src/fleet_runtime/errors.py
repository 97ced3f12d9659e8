# SPDX-License-Identifier: MIT
"""The error that the runtime raises for an operator."""


class FleetError(Exception):
    """The process cannot do what it was started for. The message is one sentence for the operator."""
