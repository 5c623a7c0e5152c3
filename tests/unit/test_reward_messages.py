"""The wire format: what goes in comes out, bit by bit; anything else is refused."""

from __future__ import annotations

import math

import msgpack
import pytest

from promptist.reward.messages import (
    VERSION,
    Failure,
    ImageRequest,
    Measurement,
    Message,
    MessageError,
    Ready,
    Result,
    Stop,
    Task,
    decode,
    encode,
)

ODD = "a „red“ boat 🚤\n\x00 half \ud83d"


@pytest.mark.parametrize(
    "message",
    [
        Task(2**40, (ImageRequest(ODD, "x", "train", 3), ImageRequest("x", "x", "eval", 0, True))),
        Result(
            7, (Measurement(math.nextafter(0.1, 1), -1e-300, {"pick": 0.3}, "images/a.png", True),), 1.5, 9.0
        ),
        Failure(1, ODD, "ValueError: no"),
        Ready("abc", 8),
        Stop(),
    ],
)
def test_round_trip(message: Message) -> None:
    assert decode(encode(message)) == message


def test_the_kinds_are_those_of_the_contract() -> None:
    kinds = [
        msgpack.unpackb(encode(m))["kind"]
        for m in (Task(0, ()), Result(0, (), 0.0, 0.0), Failure(0, "", ""), Ready("", 1), Stop())
    ]
    assert kinds == ["task", "result", "error", "ready", "stop"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xc1", "no msgpack message"),
        (b"", "no msgpack message"),
        (msgpack.packb([1]), "version None"),
        (msgpack.packb({"v": VERSION + 1, "kind": "stop"}), f"version {VERSION + 1}"),
        (msgpack.packb({"v": VERSION, "kind": "dance"}), "dance"),
        (msgpack.packb({"v": VERSION, "kind": "task", "id": 1}), "wrong fields"),
        (msgpack.packb({"v": VERSION, "kind": "task", "id": 1, "requests": [["x"]]}), "wrong fields"),
    ],
)
def test_other_bytes_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode(data)


def test_requests_check_themselves() -> None:
    with pytest.raises(ValueError, match="namespace"):
        ImageRequest("y", "x", "test", 0)
    with pytest.raises(ValueError, match="negative"):
        ImageRequest("y", "x", "train", -1)
    assert ImageRequest("x", "x", "train", 0).plain
    assert not ImageRequest("y", "x", "train", 0).plain
