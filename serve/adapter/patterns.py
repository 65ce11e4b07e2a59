"""Regular expressions from elsewhere: matched for a bounded time."""

import regex

from serve.errors import UserError

SECONDS = 0.1
"""For one name. Honest patterns take microseconds; some take longer than the universe lasts."""


class PatternError(UserError, ValueError):
    """A pattern that cannot be used, in words for whoever wrote it."""


def matches_end(pattern: str, name: str) -> bool:
    """Whether `pattern` matches `name`, or the end of it after a dot: PEFT's rule for modules. Raises PatternError."""
    try:
        return regex.match(rf"(.*\.)?({pattern})$", name, timeout=SECONDS) is not None
    except regex.error as error:
        raise PatternError(f"{pattern!r} is not a regular expression: {error}") from error
    except TimeoutError as error:
        raise PatternError(
            f"{pattern!r} takes too long to match; write it without nested repetitions"
        ) from error
    except (RecursionError, OverflowError, MemoryError) as error:
        raise PatternError(f"{pattern!r} is too large") from error
