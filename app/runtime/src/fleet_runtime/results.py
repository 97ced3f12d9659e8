"""Result backends that store a result in one round trip.

Celery's asks for what is stored, and then stores: it leaves a success as it is, whatever a second run of the
task says (celery 5.7, backends/base.py, _store_result). Here a script does both.
"""

from __future__ import annotations

from typing import Any

from celery import states
from celery.backends import redis as stock
from kombu.utils.encoding import bytes_to_str

# Stores a result, unless there is a success, and tells who waits for it. Unlike what moves messages, it is
# refused by a Redis that is full: a result takes room.
# KEYS: the result's. ARGV: the result, seconds to keep it (0: for ever)
STORE = """
local stored = redis.call('GET', KEYS[1])
if stored then
  local good, result = pcall(cjson.decode, stored)
  if good and type(result) == 'table' and result.status == 'SUCCESS' then
    return 0
  end
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""


class RedisBackend(stock.RedisBackend):  # type: ignore[misc]  # celery ships no types
    """Celery's backend, with one round trip less for each result."""

    def _store_result(
        self,
        task_id: Any,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **more: Any,
    ) -> Any:
        """Store a result, unless there is a success."""
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        value = self.encode({**meta, "task_id": bytes_to_str(task_id)})
        readable = self.serializer == "json" and isinstance(value, str)  # by the script: not compressed
        if not readable or len(value) > self._MAX_STR_VALUE_SIZE:
            return super()._store_result(task_id, result, state, traceback, request, **more)
        expires = self.failure_expires if state == states.FAILURE else None
        seconds = self.expires if expires is None else expires
        self.ensure(self._store, (self.get_key_for_task(task_id), value, int(seconds or 0)))
        return result

    def _store(self, key: Any, value: str, seconds: int) -> None:
        """Run the script."""
        self.client.register_script(STORE)(keys=[key], args=[value, seconds])


class SentinelBackend(RedisBackend, stock.SentinelBackend):  # type: ignore[misc]  # celery ships no types
    """The same, for the master that Sentinel names."""
