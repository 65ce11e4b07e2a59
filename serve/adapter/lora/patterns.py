"""Matches regular expressions from other people within a limited time."""

import regex

from serve.errors import UserError

SECONDS = 0.1
"""The limit for one name. Ordinary patterns take microseconds; some would never end."""


class PatternError(UserError, ValueError):
    """A pattern that cannot be used. The message is for the person who wrote it."""


def matches_end(pattern: str, name: str) -> bool:
    """Returns whether `pattern` matches `name`, or its end after a dot, which is PEFT's rule for modules. Raises
    PatternError."""
    return _match(pattern, rf"(.*\.)?({pattern})$", name) is not None


def matches_whole(pattern: str, name: str) -> bool:
    """Returns whether `pattern` matches all of `name`. Raises PatternError."""
    return _match(pattern, rf"(?:{pattern})\Z", name) is not None


def number_after(pattern: str, name: str) -> int | None:
    """Returns the number between dots behind the first match of `pattern` in `name`, where the match begins a part of
    the name; None if there is none. Raises PatternError."""
    match = _match(pattern, rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.", name)
    return None if match is None else int(match["number"])


def _match(pattern: str, whole: str, name: str) -> "regex.Match[str] | None":
    """Matches `whole`, which was made of the given `pattern`. Errors name the given one."""
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
