# SPDX-License-Identifier: MIT
"""The Redis transport: fetches and acknowledges messages, and records in one step who holds them."""
