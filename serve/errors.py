"""The root of what the server, training and the command say to a person when something cannot be used.

    UserError
    ├── RefusedError          a request to the server
    ├── UsageError            the command line (choir_cli)
    ├── ConfigError           a setting
    ├── EngineSettingError    one of vLLM's engine arguments
    ├── ServerError           the server cannot start, or ends
    ├── StartError            the controller cannot start
    ├── DatabaseError         the durable state
    │   └── Conflict          it has changed meanwhile
    │       └── TakenOver     by a later server
    ├── StoreError            the store of adapters
    │   ├── NotAllowed        a place that adapters may not come from
    │   └── Missing           an allowed place without a folder
    ├── BackupError           a store that cannot be copied
    ├── BundleError           a bundle on disk
    ├── BaseError             the base model
    ├── ImageError            an image in a request
    ├── LabelError            labels under the base's tokenizer
    ├── AdapterError          an adapter's folder
    ├── OriginError           what an adapter says of its base
    ├── PatternError          a regular expression from elsewhere
    ├── SoftError             a prefix or prompt adapter in an engine's worker
    ├── TensorError           a safetensors file
    ├── DigestError           a folder that has no digest
    ├── LocationError         a remote place
    ├── FusionError           inputs, weights or parameters of a fusion
    │   ├── OutputError       a member, or a fitted parameter, gives what is no number
    │   └── StaleFusionError  parameters that were fitted to other adapters
    ├── RecipeError           a recipe, or data that it names
    ├── ReportError           the page of a report, which cannot be drawn
    ├── ImproveError          a bundle whose next steps cannot be measured
    ├── ConversionError       an adapter or model that cannot be made into a LoRA
    └── ClusterError          the Ray cluster that trains

The Python client has a tree of its own (`choir_client.exceptions`), because it needs nothing of the server.

A `Refusal` is the value that crosses processes. A remote exception would be logged with a stack trace and lose its
status on the way, so engines and the controller return a `Refusal`; code that is deeper down raises a `RefusedError`.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self


class UserError(Exception):
    """Something that a person gave or set up cannot be used. The message is one or more sentences for that person: what
    was wrong, what was expected, what to do."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused, in the words and with the status that the client gets."""

    status: int
    """The HTTP status."""
    message: str
    code: str | None = None
    param: str | None = None
    """The field of the body, or the parameter of the query, that is wrong."""


class RefusedError(UserError):
    """Ends the work on a request. Whoever took the request answers with the refusal."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`headers` are added to the HTTP answer."""
        # Names of files need not be UTF-8; answers and the audit have to be.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.refusal = Refusal(status, message, code, param)
        self.headers = headers or {}

    @classmethod
    def of(cls, refusal: Refusal, headers: Mapping[str, str] | None = None) -> Self:
        return cls(refusal.status, refusal.message, refusal.code, refusal.param, headers)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its type where there is none."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


def last_line(error: BaseException) -> str:
    """The last line of an error's message that is not blank, which is where libraries name the cause; the name of its
    type where there is none."""
    return next(
        (line.strip() for line in reversed(str(error).splitlines()) if line.strip()),
        type(error).__name__,
    )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'name'?` with the known name that is most like the given one; nothing if none is like it.
    A message about an unknown name ends with it."""
    close = difflib.get_close_matches(given.lower(), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
