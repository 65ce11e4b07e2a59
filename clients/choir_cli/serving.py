"""`choir serve`: the server, until it is stopped."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from choir_cli import packing
from choir_cli.console import UsageError
from choir_cli.parsing import json_object


def serve(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundles of one base.", metavar="BUNDLE...")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engines.")] = None,
    gateways: Annotated[int | None, typer.Option(help="HTTP gateways.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of artifacts and state; .choir/ in the bundle.")
    ] = None,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that file:// adapters may come from; may be repeated."),
    ] = None,
    adapter_prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI",
            help="A remote place (s3://, gs://, hf://) that adapters may come from; may be repeated.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A Host that admin routes accept; may be repeated.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="JSON", help="vLLM's engine arguments by name.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A file with these settings.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join this Ray cluster.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve beyond loopback without an admin token.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Without a bundle: folder or hub id of the base.")
    ] = None,
    adapter: packing.Adapters = None,
    task: packing.Task = None,
    fusion: packing.Fusion = None,
    labels: packing.Labels = None,
    weight: packing.Weights = None,
    template: packing.Template = "{text}",
    verbalizers: packing.Verbalizers = None,
    name: packing.EnsembleName = "ensemble",
    revision: packing.Revision = None,
) -> None:
    """Serve bundles, or a base and PEFT folders as they are, until stopped."""
    if base is not None and bundles:
        raise UsageError("Serve bundles, or --base with its adapters, not both.")
    if base is None and (adapter or task or fusion or labels):
        raise UsageError("--adapter, --task, --fusion and --labels go with --base.")
    if not (base or bundles or config or os.environ.get("CHOIR_BUNDLES")):
        raise UsageError("Say what to serve: bundles, or --base with --adapter NAME=DIR.")
    flags: dict[str, Any] = {
        "bundles": bundles,
        "host": host,
        "port": port,
        "dtype": dtype,
        "replicas": replicas,
        "gateways": gateways,
        "store": store,
        "adapter_roots": adapter_root,
        "adapter_prefixes": adapter_prefix,
        "allowed_hosts": allowed_host,
        "engine": None if engine is None else json_object("--engine", engine),
        "address": address,
        "insecure": insecure or None,
    }
    with tempfile.TemporaryDirectory(prefix="choir-") as scratch:
        if base is not None:
            packed = packing.pack_bundle(
                Path(scratch) / "bundle",
                base=base,
                adapters=adapter,
                task=task,
                fusion=fusion,
                labels=labels,
                weights=weight,
                template=template,
                verbalizers=verbalizers,
                name=name,
                revision=revision,
            )
            flags["bundles"] = [packed.path]
        status = _run({key: value for key, value in flags.items() if value is not None}, config)
    raise typer.Exit(status)


def _run(flags: dict[str, Any], config: Path | None) -> int:
    from serve.config import Settings

    # Wrong settings are said before Ray and vLLM take their seconds to load.
    settings = Settings.load(flags, config)
    from serve.graph.server import run

    return run(settings)
