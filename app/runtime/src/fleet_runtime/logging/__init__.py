"""The systemd journal, and Celery's logging on it."""
