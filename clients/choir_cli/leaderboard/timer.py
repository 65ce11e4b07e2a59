"""Measures the requests of a leaderboard's rungs in an engine, in a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from serve.adapter import rank_limit
from serve.bundle import Bundle
from serve.manifest import Ensemble
from serve.ray_options import engine_environment, engine_threads
from training.leaderboard.leaderboard import judged_members
from training.leaderboard.timing import Input

RESULT = "times.json"
LOG = "engine.log"


class EngineTimer:
    """An engine that starts at once and is asked later. Use it as a context: at its end, the engine's process ends.

    If the engine cannot start or fails, no time is measured, and `problem` says why."""

    def __init__(self, bundle: Bundle, ensemble: str) -> None:
        """Starts an engine as `choir serve` would by default, with room for all rungs of the ensemble."""
        self.problem: str | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="choir-timer-")
        self._folder = Path(self._scratch.name)
        adapters = {
            ref.digest: bundle.adapter_dir(ref)
            for member in judged_members(bundle, ensemble)
            for ref in member.adapters
        }
        settings = {
            "model": bundle.base_source,
            "revision": bundle.base_revision,
            "kind": bundle.base_kind(),
            "adapter_slots": max(1, len(adapters)),
            "max_lora_rank": rank_limit(adapters.values()),
        }
        with (self._folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "choir_cli.leaderboard.engine", str(self._folder / RESULT)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**engine_threads(1), **os.environ, **engine_environment()},
                text=True,
            )
        self._tell(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._scratch.cleanup()

    def milliseconds(
        self, bundle: Bundle, rungs: Mapping[str, Ensemble], inputs: Sequence[Input]
    ) -> dict[str, float]:
        """See `training.leaderboard.timing.Timer`. Returns nothing if the engine failed; `problem` says why."""
        asked = [
            {
                "name": name,
                "manifest": manifest.model_dump(mode="json", exclude_none=True),
                "adapters": {
                    ref.digest: str(bundle.adapter_dir(ref))
                    for member in manifest.members
                    for ref in member.adapters
                },
                "parameters": str(path) if (path := bundle.fusion_path(manifest)) else None,
            }
            for name, manifest in rungs.items()
        ]
        self._tell({"rungs": asked, "inputs": [asdict(each) for each in inputs]})
        self._process.wait()
        result = self._folder / RESULT
        if not result.is_file():
            self.problem = f"Requests were not measured: {self._reason()}"
            return {}
        found = json.loads(result.read_text(encoding="utf-8"))
        if found["refusals"]:
            self.problem = f"Some requests were not measured: {' '.join(found['refusals'])}"
        times: dict[str, float] = found["milliseconds"]
        return times

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None, "it was started with a pipe"
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended already, and its log says why
            return

    def _reason(self) -> str:
        """Return the last line of the process's log."""
        log = (self._folder / LOG).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        return lines[-1] if lines else f"the engine ended with status {self._process.returncode}."
