"""A pytest plugin that runs kombu's tests of its Redis transport on the runtime's transport."""

from __future__ import annotations

import os

import kombu.transport

if os.environ.get("SUITE_RUNTIME") == "true":
    kombu.transport.TRANSPORT_ALIASES["redis"] = "fleet_runtime.transport:Transport"
