# SPDX-License-Identifier: MIT
"""JSON is decoded as kombu decodes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.messages.json_decoder import loads, register_json
from kombu import serialization
from kombu.utils.json import dumps
from kombu.utils.json import loads as stock_loads

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES = [None, 1, "é", {"a": [1.5, None]}, b"bytes", b"\xff", {"__type__": "x"}]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "as_", [str, str.encode, lambda text: memoryview(text.encode()), lambda text: bytearray(text.encode())]
)
def test_loads_returns_the_same_for_every_type(value: Any, as_: Any) -> None:
    """As kombu does."""
    text = dumps(value)
    assert loads(as_(text)) == stock_loads(as_(text)) == value


@pytest.mark.parametrize("text", ["", "{", b"\xff", "\ufeff{}", '{"__type__": "no", "__value__": 1}'])
def test_loads_raises_the_same_kind_of_error(text: Any) -> None:
    """As kombu does."""
    kinds = []
    for decode in (stock_loads, loads):
        with pytest.raises(ValueError, match=r".") as raised:
            decode(text)
        kinds.append(type(raised.value))
    assert kinds[0] is kinds[1]


@pytest.fixture
def _stock_json() -> Iterator[None]:
    """Restore kombu's own serializer afterwards."""
    yield
    serialization.register_json()


@pytest.mark.usefixtures("_stock_json")
def test_bodies_are_decoded_by_it_until_an_app_registers_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By kombu's public registry."""
    decoded: list[Any] = []
    monkeypatch.setattr("fleet_runtime.messages.json_decoder.loads", lambda data: decoded.append(data))
    register_json()
    serialization.loads("[1]", "application/json", "utf-8")
    assert decoded == ["[1]"]
    serialization.register_json()
    assert serialization.loads("[1]", "application/json", "utf-8") == [1]
    assert decoded == ["[1]"]
