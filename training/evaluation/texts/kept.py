"""Keeps what members wrote beside the record of the run, so that no answer is written twice: training judges members,
and then a leaderboard and `choir evaluate` judge them on the same rows."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serve.bundle import Bundle
from serve.files import write_atomically
from serve.manifest import Ensemble, Member
from training.execution.run import WORK
from training.offline.writing import Written

FOLDER = "answers"
"""Folder in the folder of the run's record."""
_FORMAT = 1
"""Answers that another form of writing made are not read; raise it when writing changes."""
_WRITTEN: TypeAdapter[list[Written]] = TypeAdapter(list[Written])


class KeptAnswers:
    """The greedy answers of members, and of members together, that were written for this bundle. A bundle without a
    record keeps none."""

    def __init__(self, bundle: Bundle, ensemble: Ensemble, max_new_tokens: int) -> None:
        self._folder = bundle.path / WORK / FOLDER
        self._keeps = (bundle.path / WORK).is_dir()
        self._template = ensemble.template
        self._limit = max_new_tokens
        file = (bundle.base_folder or Path()) / "generation_config.json"
        self._defaults = file.read_text(encoding="utf-8") if file.is_file() else ""

    def of(
        self,
        members: Sequence[Member],
        how: Sequence[object],
        texts: Sequence[str],
        write: Callable[[], list[Written]],
    ) -> list[Written]:
        """Return what `members` write to `texts` together, `how` they are fused (nothing for one member): the kept
        answers, or what `write` returns, which is kept then."""
        adapters = [sorted(ref.digest for ref in member.adapters) for member in members]
        asked = [_FORMAT, adapters, *how, self._template, self._limit, self._defaults, *texts]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        file = self._folder / f"{digest[:24]}.json"
        if file.is_file():
            try:
                return _WRITTEN.validate_json(file.read_bytes())
            except ValidationError:
                pass  # cut off by hand or by a full disk: written again below
        written = write()
        if self._keeps:
            self._folder.mkdir(exist_ok=True)
            write_atomically(file, _WRITTEN.dump_json(written))
        return written
