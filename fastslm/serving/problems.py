"""What went wrong with a request, in the shape that OpenAI's clients read."""

from typing import Any

from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: what is wrong and what to do, for a person.
        param: the field that is wrong.
        code: for a program.
        retry_seconds: when to come again.
        again: whether clients that ask again by themselves may.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: int | None = None,
        again: bool = True,
    ) -> None:
        message = message.encode("utf-8", "replace").decode()  # a name that a client sends may be no text
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_seconds, self.again = retry_seconds, again

    def body(self) -> dict[str, Any]:
        """Return it as OpenAI's API words it."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the answer to the request."""
        headers = {} if self.retry_seconds is None else {"Retry-After": str(self.retry_seconds)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if not self.again:
            headers["x-should-retry"] = "false"  # read by OpenAI's clients, which ask twice more after any 5xx
        return JSONResponse(self.body(), self.status, headers)


def ending() -> Problem:
    """Return what a request is told that came too late."""
    return Problem(503, "The server is ending. Ask again.", None, "ending", 5)


def died() -> Problem:
    """Return what a request is told whose answer ended the model's process."""
    said = "The model's process ended while it answered this request, and is started again; the server's log says how."
    return Problem(500, said, None, "model_died", again=False)  # it may be what ended it


def failed() -> Problem:
    """Return what is told of a failure that is not the client's."""
    return Problem(500, "The server failed; its log says how.")
