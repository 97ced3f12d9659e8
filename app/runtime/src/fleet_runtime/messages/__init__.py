# SPDX-License-Identifier: MIT
"""Headers and properties that the runtime adds to messages."""
