# SPDX-License-Identifier: MIT
from celery import Celery

celery = Celery("worker", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")


@celery.task(name="count_words")
def count_words(text):
    return len(text.split())
