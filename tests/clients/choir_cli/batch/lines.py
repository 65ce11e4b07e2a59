"""Files of requests and of answers."""

import json
from pathlib import Path
from typing import Any


def request(custom_id: str, text: str = "x", **more: Any) -> dict[str, Any]:
    body = {"model": "intents", "input": text}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/predict", "body": body} | more


def write(file: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    file.write_text("".join(f"{text}\n" for text in texts))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
