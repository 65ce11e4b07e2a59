"""A tool, a call of it as Hermes writes it, and what makes a base of random weights call it once."""

import json
from pathlib import Path
from typing import Any

from serve.base.side_files import read_tokenizer

CALL = {"name": "weather", "arguments": {"city": "Bern"}}
WRITTEN = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Basel"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def tight(base: Path) -> dict[str, Any]:
    """What keeps a base of random weights to one call: a grammar allows others after it, and spaces without end."""
    tokens = read_tokenizer(str(base), None)
    blank = {
        str(id_): -100 for id_ in tokens.get_vocab().values() if not tokens.decode([id_]).strip()
    }
    return {"parallel_tool_calls": False, "logit_bias": blank}
