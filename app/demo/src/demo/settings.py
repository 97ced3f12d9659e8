# SPDX-License-Identifier: MIT
"""The app's settings, from the environment."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What may differ from one place to another. A field `name` is the variable DEMO_NAME."""

    model_config = SettingsConfigDict(env_prefix="DEMO_", frozen=True)

    redis_url: str = Field(default="redis://localhost:6379/0", description="Broker and result backend.")
    tick_seconds: float = Field(default=10, gt=0, description="Seconds between two ticks of the schedule.")
    sender: str = Field(default="demo@example.com", description="Sender of the letters.")
    ledger: Path = Field(default=Path("ledger.jsonl"), description="File in which `record` notes each run.")


settings = Settings()
