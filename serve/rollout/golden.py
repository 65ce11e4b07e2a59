"""Golden inputs: texts whose label is known, which every replica answers before a version goes live."""

import logging

from serve.engine.interface import Engine, PredictCall, Refusal, Text, Version
from serve.fusion.fused import Fused
from serve.manifest import Golden

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""How many are asked in one call."""
SHOWN = 80
"""How many characters of an input a message repeats."""


async def wrong_golden(engine: Engine, version: Version) -> str | None:
    """What a loaded version answers otherwise than its golden inputs say, if it does."""
    golden = version.ensemble.golden
    wrong: list[str] = []
    for first in range(0, len(golden), AT_ONCE):
        part = golden[first : first + AT_ONCE]
        call = PredictCall(
            version=version.key,
            inputs=tuple(map(_text, part)),
            request_id=f"golden-{version.key}-{first}",
        )
        try:
            answer = await engine.predict(call)
        except Exception as error:  # whatever an engine raises, the version has not proved itself
            logger.exception("%s could not answer its golden inputs.", version.key)
            return f"the engine failed on its golden inputs ({type(error).__name__})"
        if isinstance(answer, Refusal):
            return f"its golden inputs cannot be answered: {answer.message}"
        assert isinstance(answer.answers, Fused), "golden inputs are admitted for classification"
        labels = [answer.labels[winner] for winner in answer.answers.winners.tolist()]
        wrong += [
            f"golden input {first + number} ({_text(each).text[:SHOWN]!r}) is answered {label!r} instead of "
            f"{each.label!r}"
            for number, (each, label) in enumerate(zip(part, labels, strict=True))
            if label != each.label
        ]
    if not wrong:
        return None
    more = f" (and {len(wrong) - 1} more of {len(golden)})" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}"


def _text(golden: Golden) -> Text:
    if isinstance(golden.input, str):
        return Text(golden.input)
    return Text(golden.input["text"], golden.input.get("text_pair"))
