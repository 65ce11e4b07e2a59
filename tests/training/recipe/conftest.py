from typing import Any

from tests.training.conftest import recipe_content


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the small recipe with `value` at `path`: keys and indices, joined by dots."""
    content = recipe_content()
    place: Any = content
    *parents, last = path.split(".")
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    place[int(last) if last.isdigit() else last] = value
    return content
