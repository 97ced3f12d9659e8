# SPDX-License-Identifier: MIT
from app.worker import count_words
from celery.result import AsyncResult
from fastapi import FastAPI

api = FastAPI()


@api.post("/texts", status_code=202)
async def submit(text: str):
    return {"task": count_words.delay(text).id}


@api.get("/texts/{task}")
async def look(task: str):
    result = AsyncResult(task, app=count_words.app)
    return {"state": result.state, "words": result.result if result.successful() else None}
