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
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        message = message.encode("utf-8", "replace").decode()  # a name that a client sends may be no text
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_seconds = retry_seconds

    def body(self) -> dict[str, Any]:
        """Return it as OpenAI's API words it."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the answer to the request."""
        headers = {} if self.retry_seconds is None else {"Retry-After": str(self.retry_seconds)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def ending() -> Problem:
    """Return what a request is told that came too late."""
    return Problem(503, "The server is ending. Ask again.", None, "ending", 5)


def failed() -> Problem:
    """Return what is told of a failure that is not the client's."""
    return Problem(500, "The server failed; its log says how.")
