"""What can go wrong between a client and the cascade, by what the caller can do about it."""

from __future__ import annotations

from tritonclient.utils import InferenceServerException

from cascade import encoding
from cascade.errors import CascadeError

UNAVAILABLE, DEADLINE_EXCEEDED = "StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"
# Triton's message, with NOT_FOUND, about a model that is being loaded or unloaded.
NO_VERSIONS = "has no available versions"
# gRPC's messages about a name without an address, of earlier versions and of later ones.
UNRESOLVED = ("DNS resolution failed", "errors resolving")


class RecommendError(CascadeError):
    """The server could not answer; the message is the server's, without its traceback. The
    `request_id` identifies the request in the server's log."""

    request_id = ""


class InvalidInput(RecommendError, encoding.InvalidInput):
    """A value that the cascade cannot read, found by the client or by the server: correct it."""


class DeadlineExceeded(RecommendError, TimeoutError):
    """No answer within the deadline of the call: allow more time, or do without the answer."""


class Unavailable(RecommendError, ConnectionError):
    """The server cannot be reached or is overloaded, and asking again did not help: `message` is
    what it (or gRPC) said last, `waited_s` runs from the first try to the last failure."""

    def __init__(self, message: str, tries: int, waited_s: float) -> None:
        times = "once" if tries == 1 else f"{tries} times"
        super().__init__(f"unavailable, asked {times} in {waited_s:.2f} s: {message}")
        self.tries, self.waited_s = tries, waited_s


class Closed(RecommendError, ValueError):
    """A call of a client that has been closed."""

    def __init__(self) -> None:
        super().__init__("this client has been closed: make another one")


class WrongLoop(RecommendError, RuntimeError):
    """A call of an asyncio client in another event loop than its first."""

    def __init__(self) -> None:
        super().__init__(
            "this AsyncRecommender belongs to the event loop of its first call, and another one "
            "runs, as each asyncio.run starts one: make a client inside it (async with "
            "AsyncRecommender(...)), or one Recommender for all"
        )


def server_message(error: InferenceServerException) -> str:
    """The first paragraph: a Python backend appends its traceback after an empty line."""
    return (error.message() or str(error)).split("\n\nAt:")[0].strip()


def is_transient(error: InferenceServerException) -> bool:
    """Whether asking again may help: the server is not there, too busy, or loading the model."""
    return error.status() == UNAVAILABLE or NO_VERSIONS in (error.message() or "")


def no_address(error: InferenceServerException) -> bool:
    """Whether the server's name could not be resolved. gRPC asks again after up to two minutes; a
    new channel asks at once."""
    said = error.message() or ""
    return error.status() == UNAVAILABLE and any(words in said for words in UNRESOLVED)


def from_server(error: InferenceServerException) -> RecommendError:
    """The error to raise for an answer that asking again would not change."""
    message, status = server_message(error), error.status()
    if status in (DEADLINE_EXCEEDED, "StatusCode.CANCELLED"):
        return DeadlineExceeded(f"no answer within the deadline: {message}")
    return (InvalidInput if status == "StatusCode.INVALID_ARGUMENT" else RecommendError)(message)
