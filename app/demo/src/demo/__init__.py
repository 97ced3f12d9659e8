"""A small Celery app, enough to prove a fleet."""
