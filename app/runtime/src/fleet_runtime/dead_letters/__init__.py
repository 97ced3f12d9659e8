# SPDX-License-Identifier: MIT
"""Messages that failed for good."""
