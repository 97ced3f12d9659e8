"""What a Beat process does besides Celery's own."""
