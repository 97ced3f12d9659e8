"""What every Celery process of the fleet is started through, whatever app it runs."""
