"""A real start with other adapters than the store has active says so, and what it tells to type brings them in."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from serve.bundle import Bundle
from serve.control.admission.pools import EngineLimits, Pool
from serve.control.startup import ControllerOptions, Opened
from serve.pack import pack
from tests.service.models import LABELS, TEMPLATE, Models
from tests.service.running import serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SAYS = {"task": "classification", "fusion": "average", "labels": LABELS, "template": TEMPLATE}


def fill_store(store: Path, bundle: Bundle) -> None:
    """As the first start with a bundle does, without engines."""
    limits = EngineLimits(5, 64, bundle.base_kind(), bundle.base_folder)
    Opened.of(ControllerOptions([Pool("bundle", [bundle], limits)], store)).database.close()


def test_a_start_with_another_adapter_says_so_and_how_to_serve_it(
    models: Models, tmp_path: Path
) -> None:
    old = pack(str(models.base), {"a": models.adapters["a"]}, tmp_path / "old", **SAYS)  # type: ignore[arg-type]
    fill_store(tmp_path / "store", old)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS), encoding="utf-8")
    log = tmp_path / "serve.log"
    with serving(
        *("--base", models.base, "--adapter", f"a={models.adapters['b']}"),
        *("--task", "classification", "--fusion", "average", "--labels", labels),
        *("--template", TEMPLATE, "--store", tmp_path / "store", "--dtype", "float32"),
        *("--engine", '{"kv_cache_memory_bytes": 268435456}'),
        log=log,
    ) as service:
        said = log.read_text(encoding="utf-8")
        for adapter in ("a", "b"):
            assert models.digest(adapter).removeprefix("sha256:")[:12] in said
        assert "WARNING: ensemble: version 1 of the store answers" in said
        assert models.uri("b") in said
        command = f"choir swap ensemble --version 2 --url {service.url}"
        assert f"\n  {command}\n" in said
        [view] = service.get("/v1/ensembles").json()["data"]
        assert view["digests"] == [models.digest("a")]

        arguments = shlex.split(command)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "choir_cli.main", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        [view] = service.get("/v1/ensembles").json()["data"]
        assert view["digests"] == [models.digest("b")]
        [adapter] = view["members"][0]["adapters"]
        assert adapter["uri"] == models.uri("b")
