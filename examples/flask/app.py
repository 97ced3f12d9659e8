# SPDX-License-Identifier: MIT
from celery import Celery
from flask import Flask, render_template, request

app = Flask(__name__)
celery = Celery(app.name, broker="redis://localhost:6379/0", backend="redis://localhost:6379/0")


@celery.task
def send_greeting(name):
    with app.app_context():
        return render_template("greeting.txt", name=name)


@app.post("/greetings")
def greet():
    return {"task": send_greeting.delay(request.form["name"]).id}, 202
