"""vLLM's own serving benchmark, as it is, against a fused ensemble and against one member."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.measuring import report
from tests.service.running import Service, serving

pytestmark = pytest.mark.bench

BENCHMARK = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""What `vllm bench serve` runs; the CPU build lacks that command."""

PROMPTS = 64
CLIENTS = 8
WORDS = {"--random-input-len": 48, "--random-output-len": 32}


@pytest.fixture(scope="module")
def service(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    scratch = tmp_path_factory.mktemp("vllm-benchmark")
    with serving(demo_bundle, "--store", scratch / "store", log=scratch / "serve.log") as running:
        yield running


def benchmark(service: Service, model: str, base: Path, folder: Path, *more: str) -> dict[str, Any]:
    """The figures that the benchmark saved."""
    arguments = {
        "--base-url": service.url,
        "--model": model,
        "--tokenizer": base,
        "--dataset-name": "random",
        "--num-prompts": PROMPTS,
        "--max-concurrency": CLIENTS,
        "--result-dir": folder,
        "--result-filename": "result.json",
        **WORDS,
    }
    flat = [str(part) for pair in arguments.items() for part in pair]
    command = [sys.executable, "-c", BENCHMARK, *flat, "--save-result", "--ignore-eos", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize(
    ("backend", "endpoint"),
    [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")],
)
def test_vllms_benchmark_runs_unchanged(
    service: Service, demo_bundle: Path, tmp_path: Path, backend: str, endpoint: str
) -> None:
    base = demo_bundle / "base"
    lines = []
    for model in ("replies/a", "replies"):
        found = benchmark(
            service, model, base, tmp_path, "--backend", backend, "--endpoint", endpoint
        )
        lines.append(
            f"{model:10} {found['completed']} of {PROMPTS} answered, "
            f"{found['request_throughput']:6.1f} requests and {found['output_throughput']:7.1f} tokens a second, "
            f"first token {found['median_ttft_ms']:6.1f} ms, each further one {found['median_tpot_ms']:5.1f} ms"
        )
        assert found["completed"] == PROMPTS
        assert found["total_output_tokens"] == PROMPTS * WORDS["--random-output-len"]
    report(f"vllm bench serve on {endpoint}, {CLIENTS} clients (medians)", *lines)
