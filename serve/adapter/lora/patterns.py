"""Regular expressions from elsewhere: matched for a bounded time."""

import regex

from serve.errors import UserError

SECONDS = 0.1
"""For one name. Honest patterns take microseconds; some take longer than the universe lasts."""


class PatternError(UserError, ValueError):
    """A pattern that cannot be used, in words for whoever wrote it."""


def matches_end(pattern: str, name: str) -> bool:
    """Whether `pattern` matches `name`, or the end of it after a dot: PEFT's rule for modules. Raises PatternError."""
    return _match(pattern, rf"(.*\.)?({pattern})$", name) is not None


def matches_whole(pattern: str, name: str) -> bool:
    """Whether `pattern` matches all of `name`. Raises PatternError."""
    return _match(pattern, rf"(?:{pattern})\Z", name) is not None


def number_after(pattern: str, name: str) -> int | None:
    """The number that stands between dots behind the first match of `pattern` in `name`, which begins a part of it;
    None if there is none. Raises PatternError."""
    match = _match(pattern, rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.", name)
    return None if match is None else int(match["number"])


def _match(pattern: str, whole: str, name: str) -> "regex.Match[str] | None":
    """`whole` is what becomes of somebody's `pattern`."""
    try:
        return regex.match(whole, name, timeout=SECONDS)
    except regex.error as error:
        raise PatternError(f"{pattern!r} is not a regular expression: {error}") from error
    except TimeoutError as error:
        raise PatternError(
            f"{pattern!r} takes too long to match; write it without nested repetitions"
        ) from error
    except (RecursionError, OverflowError, MemoryError) as error:
        raise PatternError(f"{pattern!r} is too large") from error
