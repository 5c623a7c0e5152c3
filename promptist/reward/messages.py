"""What training ranks and reward ranks say to each other, as versioned msgpack bytes.

A message is one msgpack map `{"v": 1, "kind": ..., ...}`. No pickle: a message can neither run code nor
depend on the class layout of another process. Floats travel as IEEE doubles, so measurements arrive bit by
bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

VERSION = 2  # 2: a measurement says whether its prompt was cut
NAMESPACES = ("train", "valid", "eval")


class MessageError(RuntimeError):
    """Bytes that are no message of this protocol version: the ranks run different code."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture to paint and measure.

    `prompt` is painted with the noise `H(namespace, source, k)`; relevance is measured against `source`,
    always the user's prompt x. The plain picture is `ImageRequest(x, x, namespace, k)`, so it shares its
    noise with the rewrite's (common random numbers). `namespace` is one of `NAMESPACES`; their noises are
    disjoint. `keep_picture` asks for a PNG below the run folder and does not enter the measurement.
    """

    prompt: str
    source: str
    namespace: str
    k: int
    keep_picture: bool = False

    def __post_init__(self) -> None:
        if self.namespace not in NAMESPACES:
            raise ValueError(f"image namespace {self.namespace!r} is not one of {', '.join(NAMESPACES)}")
        if self.k < 0:
            raise ValueError(f"noise key k = {self.k} is negative")

    @property
    def plain(self) -> bool:
        """Whether this is a picture of the user's own prompt."""
        return self.prompt == self.source


@dataclass(frozen=True, slots=True)
class Measurement:
    """Raw numbers of one picture: no hinge, no difference, no weight, so that a changed weight repaints
    nothing.

    `cosine`: CLIP text(source) . image(prompt), in [-1, 1]; `aesthetic`: the head's score; `extra`: further
    scorers by name; `picture`: PNG path relative to the run folder where the request asked for it; `truncated`:
    whether the painted text was longer than the text encoder reads.
    """

    cosine: float
    aesthetic: float
    extra: dict[str, float] = field(default_factory=dict)
    picture: str | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One diffusion batch of work. `id` is unique per training rank."""

    id: int
    requests: tuple[ImageRequest, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """Measurements in the order of the task's requests; `busy_s` and `alive_s` count from the reward rank's
    `Ready`.
    """

    id: int
    measurements: tuple[Measurement, ...]
    busy_s: float
    alive_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """The task failed; `prompt` caused it, `detail` is the exception in words."""

    id: int
    prompt: str
    detail: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The reward rank has loaded its models: the generator's fingerprint and its fixed batch."""

    fingerprint: str
    batch: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The sending training rank needs nothing more."""


Message = Task | Result | Failure | Ready | Stop


def encode(message: Message) -> bytes:
    """The message as bytes for the wire."""
    if isinstance(message, Task):
        body: dict[str, Any] = {
            "kind": "task",
            "id": message.id,
            "requests": [[r.prompt, r.source, r.namespace, r.k, r.keep_picture] for r in message.requests],
        }
    elif isinstance(message, Result):
        body = {
            "kind": "result",
            "id": message.id,
            "measurements": [
                [m.cosine, m.aesthetic, m.extra, m.picture, m.truncated] for m in message.measurements
            ],
            "busy_s": message.busy_s,
            "alive_s": message.alive_s,
        }
    elif isinstance(message, Failure):
        body = {"kind": "error", "id": message.id, "prompt": message.prompt, "detail": message.detail}
    elif isinstance(message, Ready):
        body = {"kind": "ready", "fingerprint": message.fingerprint, "batch": message.batch}
    else:
        body = {"kind": "stop"}
    # A decoded byte-level BPE can end in the middle of a character, and a JSON file can hold half a surrogate
    # pair: what Python holds as str must arrive as the same str.
    return bytes(msgpack.packb({"v": VERSION, **body}, use_bin_type=True, unicode_errors="surrogatepass"))


def decode(data: bytes | bytearray | memoryview) -> Message:
    """The message in `data`; `MessageError` if it is damaged or of another version."""
    try:
        body = msgpack.unpackb(data, raw=False, unicode_errors="surrogatepass")
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"{len(data)} bytes arrived that are no msgpack message ({error})") from error
    version = body.get("v") if isinstance(body, dict) else None
    if version != VERSION:
        raise MessageError(
            f"a message of version {version} arrived where version {VERSION} is spoken: all ranks "
            "must run the same promptist"
        )
    try:
        return _message(body)
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"a {body.get('kind')!r} message arrived with wrong fields: {error!r}") from error


def _message(body: dict[str, Any]) -> Message:
    kind = body["kind"]
    if kind == "task":
        return Task(body["id"], tuple(ImageRequest(*fields) for fields in body["requests"]))
    if kind == "result":
        measured: Sequence[Any] = body["measurements"]
        return Result(
            body["id"],
            tuple(Measurement(*fields) for fields in measured),
            body["busy_s"],
            body["alive_s"],
        )
    if kind == "error":
        return Failure(body["id"], body["prompt"], body["detail"])
    if kind == "ready":
        return Ready(body["fingerprint"], body["batch"])
    if kind == "stop":
        return Stop()
    raise ValueError(f"unknown kind {kind!r}")
