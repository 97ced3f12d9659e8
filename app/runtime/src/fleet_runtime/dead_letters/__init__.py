"""Messages that failed for good."""
