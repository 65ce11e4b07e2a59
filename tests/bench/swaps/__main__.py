"""`make bench-swap`: swaps, two canaries that fail their gates and a killed replica, under load, with a report.

Ends with status 1 if a request failed that no failing canary had to answer, an answer was mixed, or the replicas do not
end on the same version.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serve.digest import folder_digest
from tests.bench.swaps.clients import PREDICT, TOKENS, Answered, Clients, Clock, Expected
from tests.bench.swaps.page import Event, Phase, Run, phase_p99_ms, render
from tests.bench.swaps.raising import FILE, Raising
from tests.serve import tiny
from tests.service.models import LABELS, TEMPLATE, TEXTS, Models, make_models
from tests.service.running import Service, kill, serving

BEFORE, SWAPPING, KILLED, AFTER = "before", "swapping", "a replica killed", "after"
SHARES = {BEFORE: 0.2, SWAPPING: 0.45, KILLED: 0.2, AFTER: 0.15}
"""Of the run's time."""
CONTENTS = ("a2", "b2", "a")
"""What member a of each ensemble is swapped to, in turn."""
RECOVERY_SECONDS = 240
CANARY_SHARE = 0.5


class Bench:
    """One run against one server."""

    def __init__(self, service: Service, models: Models, seconds: float, swaps: int) -> None:
        self._service = service
        self._models = models
        self._seconds = seconds
        self._swaps = swaps
        self._clock = Clock()
        self._digests: dict[str, list[str]] = {}
        self._events: list[Event] = []
        self._phases: list[Phase] = []
        self._content = {"intents": "a", "replies": "a"}
        self._raising = Raising.found(
            {index: models.references[models.digest(name)] for index, name in ((1, "b"), (2, "c"))}
        )
        self._raised: Phase | None = None
        self._raised_by = self._reason = ""

    def run(self, predicting: int, chatting: int) -> Run:
        expected = self._expected()
        self._learn_versions()
        self._clock = Clock()
        clients = Clients(
            self._service.url,
            expected,
            predicting,
            chatting,
            lambda version: self._digests[version],
            lambda: self._clock(),
        )
        early = self._swaps * 3 // 4
        with clients:
            self._phase(BEFORE, 0)
            self._phase(SWAPPING, early, canary=True)
            self._phase(KILLED, self._swaps - early, kill=True)
            self._phase(AFTER, 0)
        self._wait_for_recovery()
        return self._run(clients, predicting, chatting)

    def _expected(self) -> Expected:
        chats = {}
        for folder in self._models.adapters.values():
            peft = tiny.Reference(self._models.base, folder)
            chats[folder_digest(folder)] = {
                text: peft.greedy(f"user: {text}\nassistant:", TOKENS) for text in TEXTS
            }
        tenth = self._raising.text
        texts = [text for text in TEXTS if text != tenth] * 3 + [tenth]
        return Expected(texts, LABELS, self._models.references, chats)

    # What is done to the server

    def _phase(self, name: str, swaps: int, *, canary: bool = False, kill: bool = False) -> None:
        """Make this number of swaps, spread evenly over the phase."""
        began = self._clock()
        length = self._seconds * SHARES[name]
        if kill:
            self._kill_an_engine()
        for turn in range(swaps):
            if canary and turn == swaps // 2:
                self._fail_a_canary()
                self._fail_a_canary_that_raises()
            self._swap(("intents", "replies")[turn % 2])
            self._sleep_until(began + length * (turn + 1) / swaps)
        self._sleep_until(began + length)
        self._phases.append(Phase(name, began, self._clock()))

    def _swap(self, name: str) -> None:
        at = self._clock()
        content = next(
            after
            for before, after in itertools.pairwise(itertools.cycle(CONTENTS))
            if before == self._content[name]
        )
        body: dict[str, Any] = {"members": {"a": self._models.uri(content)}}
        self._expect(name, content)
        response = self._service.post(f"/v1/ensembles/{name}/swap?wait=true", body)
        self._note(at, f"swap {name}, a={content}", response, 200)
        self._content[name] = content

    def _fail_a_canary(self) -> None:
        """A canary whose answers must equal the active version's, and do not."""
        at = self._clock()
        members = dict(zip("abc", self._disagreeing(), strict=True))
        self._expect("intents", *members.values())
        gates = {"min_requests": 30, "min_agreement": 1.0, "max_seconds": 60}
        body = {
            "members": {name: self._models.uri(content) for name, content in members.items()},
            "strategy": {"kind": "canary", "share": CANARY_SHARE, "gates": gates},
        }
        response = self._service.post("/v1/ensembles/intents/swap?wait=true", body)
        self._note(at, f"canary of intents, {members}", response, 400)

    def _fail_a_canary_that_raises(self) -> None:
        """A canary that fails on a tenth of its requests, twice as many as its gate allows."""
        at = self._clock()
        self._expect("intents")
        self._raised_by = max(
            (key for key in self._digests if key.startswith("intents@")),
            key=lambda key: int(key.partition("@")[2]),
        )
        digests = dict(zip("abc", self._digests[self._raised_by], strict=True))
        self._raising.write(self._models.bundle, LABELS, digests)
        manifest = {
            "format": 1,
            "name": "intents",
            "task": "classification",
            "labels": LABELS,
            "template": TEMPLATE,
            "members": [
                {"name": name, "adapters": [{"adapter": f"intents-{name}", "digest": digest}]}
                for name, digest in digests.items()
            ],
            "fusion": {"method": "stack", "model": "logistic_regression", "parameters": FILE},
        }
        gates = {"min_requests": 100, "max_error_rate": 0.05, "max_seconds": 60}
        body = {
            "manifest": {**manifest, "version": 1},
            "strategy": {"kind": "canary", "share": CANARY_SHARE, "gates": gates},
        }
        response = self._service.post("/v1/ensembles/intents/swap?wait=true", body)
        self._note(at, f"canary of intents that raises for {self._raising.text!r}", response, 400)
        self._reason = response.json().get("error", {}).get("message", "")
        self._raised = Phase("raising", at, self._clock())

    def _disagreeing(self) -> Sequence[str]:
        """Return three contents whose average gives some text another label by PEFT."""

        def labels(contents: Sequence[str]) -> list[int]:
            digests = [self._models.digest(each) for each in contents]
            return [
                max(
                    range(len(LABELS)),
                    key=lambda label: sum(
                        self._models.references[digest][text][label] for digest in digests
                    ),
                )
                for text in TEXTS
            ]

        now = labels((self._content["intents"], "b", "c"))
        return next(
            each
            for each in itertools.permutations(self._models.adapters, 3)
            if sum(map(int.__ne__, labels(each), now)) >= 2
        )

    def _kill_an_engine(self) -> None:
        kill(self._service.replicas("Engine")[0])
        self._events.append(Event(self._clock(), "kill -9 of an engine replica", bad=True))

    def _note(self, at: float, what: str, response: httpx.Response, status: int) -> None:
        answered = response.status_code == status
        if not answered:
            what = f"{what}: {response.status_code} {response.text}"
        elif status == 200:
            what = f"{what} -> {response.json()['to']}"
        self._events.append(Event(at, what, self._clock() - at, bad=not answered))

    def _sleep_until(self, at: float) -> None:
        time.sleep(max(0.0, at - self._clock()))

    # What versions hold

    def _learn_versions(self) -> None:
        for name in ("intents", "replies"):
            view = self._service.get(f"/v1/ensembles/{name}").json()
            for version in view["versions"]:
                self._digests[f"{name}@{version['version']}"] = version["digests"]

    def _expect(self, name: str, *contents: str) -> None:
        """Note what the next version will hold, before it is asked for."""
        versions = [key for key in self._digests if key.startswith(f"{name}@")]
        number = max(int(key.partition("@")[2]) for key in versions) + 1
        active = self._service.get(f"/v1/ensembles/{name}").json()["active_version"]
        known = self._digests[f"{name}@{active}"]
        digests = [self._models.digest(each) for each in contents]
        self._digests[f"{name}@{number}"] = [*digests, *known[len(digests) :]]

    # What is left at the end

    def _wait_for_recovery(self) -> None:
        """Wait until the killed replica is back, or until its time is over."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while self._same_everywhere() is not None and time.monotonic() < deadline:
            time.sleep(1)

    def _same_everywhere(self) -> str | None:
        """Return what both engines hold, and whether both hold what is active."""
        families = text_string_to_metric_families(self._service.get("/metrics").text)
        loaded: dict[str, set[str]] = {}
        for family in families:
            for sample in family.samples:
                if sample.name == "choir_ensemble_info":
                    key = f"{sample.labels['ensemble']}@{sample.labels['version']}"
                    loaded.setdefault(sample.labels["replica"], set()).add(key)
        active = {
            f"{each['name']}@{each['active_version']}"
            for each in self._service.get("/v1/ensembles").json()["data"]
        }
        if len(loaded) == 2 and all(active <= each for each in loaded.values()):
            return None
        return f"active are {sorted(active)}, loaded {loaded}"

    def _run(self, clients: Clients, predicting: int, chatting: int) -> Run:
        answers = clients.answers
        raised = [each for each in answers if each.failure and each.model == self._raised_by]
        failed = [
            each.failure for each in answers if each.failure and each.model != self._raised_by
        ]
        mixed = [each.mixed for each in answers if each.mixed]
        (killed,) = (phase for phase in self._phases if phase.name == KILLED)
        retried = [each for each in answers if each.retried]
        own = all(killed.began <= each.began + each.seconds <= killed.ended for each in retried)
        bad = [event.what for event in self._events if event.bad and "kill" not in event.what]
        different = self._same_everywhere()
        run = Run(
            settings=f"Two engines, two gateways, {predicting} clients that predict and {chatting} "
            f"that stream chats, {len(answers)} requests in {self._phases[-1].ended:.0f} seconds.",
            phases=self._phases,
            events=self._events,
            answers=answers,
            checks=[],
        )
        before, during = phase_p99_ms(run, BEFORE), phase_p99_ms(run, SWAPPING)
        checks = [
            (f"{len(failed)} failed requests {failed[:3] or ''}", not failed),
            (f"{len(mixed)} answers of mixed versions {mixed[:3] or ''}", not mixed),
            (f"{len(retried)} streams of the killed replica were sent again", own),
            (f"{self._swaps} swaps, two canaries aborted {bad or ''}", not bad),
            self._check_raising(answers, raised),
            (different or "both engines hold the active versions", different is None),
            (
                f"p99 of predictions during swaps is {during / before:.2f} times that before "
                f"({before:.0f} ms; the goal is 1.3)",
                during <= 1.3 * before,
            ),
        ]
        return Run(run.settings, run.phases, run.events, run.answers, checks)

    def _check_raising(
        self, answers: Sequence[Answered], raised: Sequence[Answered]
    ) -> tuple[str, bool]:
        """Return a sentence on what the canary that raises did, and whether its gate aborted it for that."""
        assert self._raised is not None
        meanwhile = [
            each
            for each in answers
            if each.kind == PREDICT and self._raised.began <= each.began <= self._raised.ended
        ]
        tried = [each for each in answers if each.model == self._raised_by]
        gated = "more than the max_error_rate" in self._reason
        return (
            f"{len(raised)} of {len(tried)} answers of the canary that raises failed "
            f"({len(meanwhile)} predictions were asked for meanwhile, {CANARY_SHARE:.0%} of them of the canary): "
            f"{self._reason}",
            gated and bool(raised),
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-swap", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--predicting", type=int, default=8)
    parser.add_argument("--chatting", type=int, default=8)
    parser.add_argument("--report", type=Path, default=Path("swap-report.html"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = make_models(Path(scratch))
        arguments = (
            *("--replicas", "2", "--gateways", "2", "--dtype", "float32"),
            *("--adapter-root", models.root / "adapters"),
            *("--engine", '{"kv_cache_memory_bytes": 268435456}'),
        )
        with serving(models.bundle, *arguments, log=models.root / "serve.log") as service:
            bench = Bench(service, models, options.seconds, options.swaps)
            run = bench.run(options.predicting, options.chatting)
    options.report.write_text(render(run), encoding="utf-8")
    print(run.settings)
    for sentence, held in run.checks:
        print(f"{'ok ' if held else 'NOT'} {sentence}")
    print(f"The report is {options.report.resolve()}.")
    # Latency depends on the machine; what must never happen does not.
    return 0 if all(held for _, held in run.checks[:-1]) else 1


if __name__ == "__main__":
    sys.exit(main())
