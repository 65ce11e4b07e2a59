"""The lines of a batch's output, in OpenAI's format. They are also what a batch knows after it was ended."""

import json
import uuid
from pathlib import Path
from typing import Any, Self

import httpx

from choir_cli.batch.requests import BadLine, Request
from choir_cli.console import UsageError

BAD_LINE = "invalid_line"
"""The error code of a line that is no request."""


class Answers:
    """The file of answers. Use it with `with`.

    Each answer is one line, which the system has as soon as `add` returns, so that it stays if this process is killed.
    A last line that was cut off is removed when the file is opened again."""

    def __init__(self, file: Path) -> None:
        """Open the file, and read which requests it answers. Raises UsageError if it holds other lines."""
        self._file = file
        self._answered: set[str] = set()
        self._refused: set[str] = set()
        self._bad: set[int] = set()
        try:
            whole = self._read() if file.exists() else 0
            self._out = file.open("ab")
            self._out.truncate(whole)
        except OSError as error:
            raise UsageError(f"{file} cannot be used: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def has(self, line: Request | BadLine) -> bool:
        """Return whether the line is answered. A line that is no request is known by its number."""
        if isinstance(line, BadLine):
            return line.number in self._bad
        return line.custom_id in self._answered

    def refused(self, line: Request | BadLine) -> bool:
        """Return whether the server had answered the line with an error when the file was opened."""
        return isinstance(line, Request) and line.custom_id in self._refused

    def add(self, request: Request, response: httpx.Response) -> None:
        """Write what the server has answered, also if that is a refusal."""
        answer = {
            "status_code": response.status_code,
            "request_id": response.headers.get("x-request-id"),
            "body": _body(response),
        }
        self._write(request.custom_id, answer, None)

    def leave_out(self, line: BadLine) -> None:
        """Write why a line was not sent."""
        message = f"Line {line.number} was not sent: {line.reason}."
        self._write(
            line.custom_id, None, {"code": BAD_LINE, "message": message, "line": line.number}
        )

    def _write(
        self, custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None
    ) -> None:
        line = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        self._out.write(json.dumps(line).encode() + b"\n")
        self._out.flush()

    def _read(self) -> int:
        """Note what the file answers. Return the length of its whole lines in bytes."""
        whole = 0
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                self._note(line, number)
                whole += len(line)
        return whole

    def _note(self, line: bytes, number: int) -> None:
        try:
            fields = json.loads(line)
            if fields["response"] is not None:
                self._answered.add(fields["custom_id"])
                if fields["response"]["status_code"] >= 400:
                    self._refused.add(fields["custom_id"])
            elif fields["error"]["code"] == BAD_LINE:
                self._bad.add(fields["error"]["line"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._file} is not the output of a batch (line {number}): name another file, or remove it."
            ) from error


def answered_with_error(response: httpx.Response) -> bool:
    """Return whether the server has refused the request."""
    return response.status_code >= 400


def _body(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text
