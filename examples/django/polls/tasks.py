# SPDX-License-Identifier: MIT
from celery import shared_task
from django.utils.text import slugify


@shared_task
def make_slug(title):
    return slugify(title)
