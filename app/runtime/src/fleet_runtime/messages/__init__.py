# SPDX-License-Identifier: MIT
"""What the runtime reads from, and writes into, the headers of messages."""
