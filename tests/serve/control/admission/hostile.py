"""What a hostile or careless person might send to a server."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
OTHER_DIGEST = "sha256:" + "0" * 64

Spoil = Callable[[Path], None]


def config(**fields: Any) -> Spoil:
    def change(folder: Path) -> None:
        file = folder / CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def write(name: str, content: bytes) -> Spoil:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def filled(value: float) -> Spoil:
    return tensors(lambda found: {name: np.full_like(x, value) for name, x in found.items()})


def header(text: bytes, rest: bytes = b"", size: int | None = None) -> Spoil:
    length = struct.pack("<Q", len(text) if size is None else size)
    return write(WEIGHTS, length + text + rest)


def cut_off(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-5])


def linked_weights(folder: Path) -> None:
    file = folder / WEIGHTS
    elsewhere = folder.parent / f"{folder.name}.elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def many_files(folder: Path) -> None:
    for number in range(101):
        (folder / f"{number}.txt").touch()


ADAPTERS: list[tuple[str, Spoil, str]] = [
    ("NaN", filled(np.nan), "NaN or infinite"),
    ("infinity", filled(np.inf), "NaN or infinite"),
    ("integers", tensors(lambda t: {n: x.astype(np.int32) for n, x in t.items()}), "type I32"),
    ("empty tensors", tensors(lambda t: {n: x[:0, :0] for n, x in t.items()}), "rank 0"),
    ("flat tensors", tensors(lambda t: {n: x.ravel() for n, x in t.items()}), "dimensions"),
    ("no tensors", tensors(lambda t: {}), "no tensors"),
    ("one matrix", tensors(lambda t: {n: x for n, x in t.items() if "_A" in n}), "no lora_B"),
    ("odd names", tensors(lambda t: {f"__{n}": x for n, x in t.items()}), "not one of a LoRA"),
    (
        "other modules",
        tensors(lambda t: {n.replace("q_proj", "z_proj"): x for n, x in t.items()}),
        "trained on another base",
    ),
    (
        "other shapes",
        tensors(lambda t: {n: np.repeat(x, 2, axis=int("_A" in n)) for n, x in t.items()}),
        "does not fit the base",
    ),
    ("cut off", cut_off, "not a sound safetensors file"),
    ("empty file", write(WEIGHTS, b""), "not a sound safetensors file"),
    ("endless header", header(b"{}", size=2**63), "not a sound safetensors file"),
    ("nested header", header(b'{"a":' * 50_000), "not a sound safetensors file"),
    (
        "overlapping tensors",
        header(
            json.dumps(
                {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}
            ).encode(),
            b"\0" * 4,
        ),
        "not a sound safetensors file",
    ),
    ("a pickle under another name", write(WEIGHTS, b"\x80\x04."), "not a sound safetensors file"),
    ("linked weights", linked_weights, "link"),
    ("a pipe", lambda f: os.mkfifo(f / "README.md"), "no regular file"),
    ("many files", many_files, "at most 100 files"),
    ("two lines in a name", write("a\nb.txt", b""), "line break"),
    ("no config", remove(CONFIG), "adapter_config.json is missing"),
    ("no weights", remove(WEIGHTS), "adapter_model.safetensors is missing"),
    ("config: no JSON", write(CONFIG, b"{"), "not valid JSON"),
    ("config: a list", write(CONFIG, b"[]"), "must hold a JSON object"),
    ("config: no text", write(CONFIG, b"\xff\xfe"), "not valid JSON"),
    ("config: nested", write(CONFIG, b"[" * 100_000), "not valid JSON"),
    ("config: large", write(CONFIG, b" " * 1_000_001), "at most 1,000,000"),
    ("config: another method", config(peft_type="LOHA"), "not served"),
    ("config: DoRA", config(use_dora=True), "DoRA is not served"),
    ("config: whole modules", config(modules_to_save=["lm_head"]), "modules_to_save"),
    ("config: biases", config(bias="all"), "biases are not served"),
    ("config: changes the base", config(init_lora_weights="pissa"), "changes the base's weights"),
    ("rank over the limit", config(r=128), "above the engine's limit of 64"),
    ("rank of the config alone", config(r=4), "config.json says 4"),
    ("rank as a text", config(r="2"), "whole number"),
    ("rank that is true", config(r=True), "whole number"),
    ("rank without end", config(r=10**300), "above the engine's limit"),
    ("no pattern", config(rank_pattern={"(": 2}), "not a regular expression"),
    (
        "a pattern without end",
        config(rank_pattern={"(\\w|\\d|.)*(\\w|\\d|.)*[A-Z]": 2}),
        "takes too long",
    ),
    ("another base's digest", write("choir.json", b'{"base": "sha256:0"}'), "another base"),
    ("origin: no JSON", write("choir.json", b"{"), "choir.json is not valid JSON"),
    (
        "a head under a causal base",
        write("head.safetensors", b""),
        "not for a base that scores labels as text",
    ),
]
"""Name, change to a sound adapter, and a part of the message that refuses it (400)."""

URIS: list[tuple[str, int, str]] = [
    ("file:///etc", 403, "--adapter-root"),
    ("file:///does/not/exist", 403, "--adapter-root"),
    ("file://{new}/../outside", 403, "--adapter-root"),
    ("file://{new}/%2e%2e/outside", 403, "--adapter-root"),
    ("file://{new}/link", 403, "--adapter-root"),
    ("file:///proc/self/cwd", 403, "--adapter-root"),
    ("file:///proc/self/root{new}", 400, "holds no file of an adapter"),
    ("file://{new}/" + "a" * 300, 403, "cannot be followed"),
    ("file://{new}/missing", 400, "There is no folder file:///"),
    ("file://{new}/one.zip", 400, "is not a folder"),
    ("file://{new}/a%00b", 400, "absolute path"),
    ("file://{new}?x=1", 400, "plain path"),
    ("file:relative", 400, "absolute path"),
    ("file://elsewhere/x", 400, "another machine"),
    ("file://[/x", 400, "is not a URI"),
    ("/{new}", 400, "file:///absolute/folder"),
    ("http://169.254.169.254/latest", 400, "not a URI that adapters come from"),
    ("data:text/plain,x", 400, "not a URI that adapters come from"),
    ("memory://x", 400, "not a URI that adapters come from"),
    ("simplecache::s3://team/x", 400, "not a URI that adapters come from"),
    ("zip://x::file:///etc/passwd", 400, "not a URI that adapters come from"),
    ("s3://other/x", 403, "--adapter-prefix"),
    ("s3://team/../other", 400, "plain"),
    ("s3://team/x?versionId=1", 400, "plain"),
    ("s3://key:hunter2@team/x", 400, "credentials"),
    ("gs://team/x", 403, "--adapter-prefix"),
    ("hf://org/name@refs/pr/1", 400, "branch, tag or commit"),
    ("hf://datasets/org/name", 400, "model repository"),
    ("x" * 5000, 400, "4096"),
]
"""`{new}` is the folder that adapters may come from."""

MANIFESTS: list[tuple[str, dict[str, Any], int, str]] = [
    ("an unknown field", {"colour": 1}, 400, "colour"),
    ("another format", {"format": 2}, 400, "format"),
    ("another name", {"name": "replies"}, 400, "'replies'"),
    ("a path as a name", {"name": "../../etc"}, 400, "name"),
    ("no members", {"members": []}, 400, "members"),
    ("one member twice", {"members": [{"name": "a", "adapters": []}] * 2}, 400, "given twice"),
    (
        "65 members",
        {"members": [{"name": f"m{n}", "adapters": []} for n in range(65)]},
        400,
        "at most 64",
    ),
    ("a path as a member", {"members": [{"name": "../a", "adapters": []}]}, 400, "members"),
    (
        "an unknown digest",
        {"members": [{"name": "a", "adapters": [{"adapter": "x", "digest": OTHER_DIGEST}]}]},
        400,
        "neither in the store nor",
    ),
    (
        "a path as a digest",
        {"members": [{"name": "a", "adapters": [{"adapter": "x", "digest": "sha256:../../x"}]}]},
        400,
        "digest",
    ),
    (
        "a path as an adapter",
        {"members": [{"name": "a", "adapters": [{"adapter": "..", "digest": OTHER_DIGEST}]}]},
        400,
        "adapter",
    ),
    ("an unknown method", {"fusion": {"method": "sum"}}, 400, "method"),
    ("a method of another task", {"fusion": {"method": "mbr"}}, 400, "not for classification"),
    ("a temperature of zero", {"fusion": {"method": "average", "temperature": 0}}, 400, "temperat"),
    (
        "parameters from elsewhere",
        {
            "fusion": {
                "method": "stack",
                "model": "logistic_regression",
                "parameters": "../../../etc/passwd",
            }
        },
        400,
        "without '..'",
    ),
    (
        "parameters from the root",
        {
            "fusion": {
                "method": "stack",
                "model": "logistic_regression",
                "parameters": "/etc/passwd",
            }
        },
        400,
        "relative path",
    ),
    (
        "parameters that are no stacker",
        {
            "fusion": {
                "method": "stack",
                "model": "logistic_regression",
                "parameters": "bundle.json",
            }
        },
        400,
        "not a fitted stacker",
    ),
    (
        "parameters that are nowhere",
        {
            "fusion": {
                "method": "stack",
                "model": "logistic_regression",
                "parameters": "fusion/x.json",
            }
        },
        400,
        "fusion/x.json",
    ),
    ("no expression", {"fusion": {"method": "vote", "extract": {"regex": "("}}}, 400, "regular"),
    ("one label", {"labels": ["yes"]}, 400, "at least 2"),
    ("a label twice", {"labels": ["yes", "yes"]}, 400, "given twice"),
    ("a template without text", {"template": "{0.__class__}"}, 400, "{text}"),
    ("golden of no label", {"golden": [{"input": "x", "label": "perhaps"}]}, 400, "perhaps"),
    ("a NUL", {"template": "{text}\0"}, 400, "NUL"),
    ("a score without end", {"scores": {"x": float("inf")}}, 400, "too large"),
    (
        "weights that sum to nothing",
        {"members": [{"name": "a", "weight": 0, "adapters": []}]},
        400,
        "weight",
    ),
    ("a version as a text", {"version": "two", "labels": 7}, 400, "labels"),
]
"""A change to a sound manifest."""


@dataclass(frozen=True)
class Hostile:
    """One request, and the status and message that refuse it."""

    path: str
    status: int
    says: str
    body: Any = field(default_factory=dict)
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    """Added to the admin token and JSON's content type. An empty text removes a header."""


SWAP, ROLLBACK = "/v1/ensembles/intents/swap", "/v1/ensembles/intents/rollback"
PREDICT, CHAT = "/v1/predict", "/v1/chat/completions"
KNOWN = {"version": 1}

REQUESTS: dict[str, Hostile] = {
    "no token": Hostile(SWAP, 401, "missing", KNOWN, headers={"authorization": ""}),
    "a wrong token": Hostile(SWAP, 401, "wrong", KNOWN, headers={"authorization": "Bearer x"}),
    "a password": Hostile(SWAP, 401, "missing", KNOWN, headers={"authorization": "Basic b3A6bw=="}),
    "a token that only predicts": Hostile(
        SWAP, 403, "needs the role admin", KNOWN, headers={"authorization": "Bearer predict-secret"}
    ),
    "a token that only reads": Hostile(
        PREDICT,
        403,
        "needs the role predict",
        {"model": "intents", "input": "x"},
        headers={"authorization": "Bearer read-secret"},
    ),
    "a foreign page": Hostile(
        SWAP, 403, "origin", KNOWN, headers={"origin": "https://evil.example"}
    ),
    "a page without origin": Hostile(SWAP, 403, "origin", KNOWN, headers={"origin": "null"}),
    "a re-pointed name": Hostile(SWAP, 403, "host", KNOWN, headers={"host": "evil.example"}),
    "a form": Hostile(
        SWAP,
        400,
        "take only JSON",
        b"version=1",
        headers={"content-type": "application/x-www-form-urlencoded"},
    ),
    "JSON as a text": Hostile(
        SWAP,
        400,
        "take only JSON",
        b'{"version": 1}',
        headers={"content-type": "text/plain"},
    ),
    "nothing": Hostile(SWAP, 400, "empty", b""),
    "no JSON": Hostile(SWAP, 400, "not valid JSON", b"{"),
    "no object": Hostile(SWAP, 400, "JSON object", b"[]"),
    "no UTF-8": Hostile(SWAP, 400, "not valid JSON", b'{"version": "\xff"}'),
    "a lone surrogate": Hostile(SWAP, 400, "not valid JSON", rb'{"members": {"a": "\ud800"}}'),
    "NaN": Hostile(SWAP, 400, "not valid JSON", b'{"version": NaN}'),
    "nested without end": Hostile(SWAP, 400, "not valid JSON", b'{"manifest":' * 50_000),
    "a number without end": Hostile(
        SWAP, 400, "not valid JSON", b'{"version": ' + b"9" * 6000 + b"}"
    ),
    "more than fits": Hostile(SWAP, 413, "larger than", b" " * 1_100_000),
    "another ensemble": Hostile("/v1/ensembles/nobody/swap", 404, "nobody", KNOWN),
    "a path as an ensemble": Hostile("/v1/ensembles/..%2f..%2fetc/swap", 404, "", KNOWN),
    "wait perhaps": Hostile(f"{SWAP}?wait=perhaps", 400, "wait", KNOWN),
    "two forms": Hostile(SWAP, 400, "exactly one", {"version": 1, "members": {"a": "file:///x"}}),
    "an unknown field": Hostile(SWAP, 400, "colour", {"version": 1, "colour": 1}),
    "no version": Hostile(SWAP, 400, "version", {"version": 0}),
    "version true": Hostile(SWAP, 400, "version", {"version": True}),
    "a version that is not there": Hostile(SWAP, 404, "no version 7", {"version": 7}),
    "a version beyond integers": Hostile(SWAP, 404, "no version", {"version": 10**30}),
    "what is active": Hostile(SWAP, 409, "active already", {"version": 1}),
    "another expected version": Hostile(SWAP, 409, "not 9", {"version": 1, "expected_version": 9}),
    "an unknown member": Hostile(SWAP, 400, "no member 'z'", {"members": {"z": "file:///x"}}),
    "a member with a path": Hostile(SWAP, 400, "members", {"members": {"../a": "file:///x"}}),
    "an unknown strategy": Hostile(
        SWAP, 400, "strategy", {"version": 1, "strategy": {"kind": "x"}}
    ),
    "a share beyond all": Hostile(
        SWAP, 400, "share", {"version": 1, "strategy": {"kind": "canary", "share": 2}}
    ),
    "an unknown gate": Hostile(
        SWAP, 400, "gates", {"version": 1, "strategy": {"kind": "canary", "gates": {"luck": 1}}}
    ),
    "promotion with fields": Hostile("/v1/rollouts/nothing/promote", 400, "no fields", {"x": 1}),
    "a rollback to nowhere": Hostile(ROLLBACK, 409, "no version before"),
    "a rollback to the future": Hostile(ROLLBACK, 409, "no version before", {"to": 9}),
    "a rollback to a text": Hostile(ROLLBACK, 400, "to", {"to": "1"}),
    "promotion of nothing": Hostile("/v1/rollouts/nothing/promote", 404, "nothing"),
    "abortion of a path": Hostile("/v1/rollouts/..%2f/abort", 404, ""),
    "another way": Hostile(SWAP, 405, "use POST", method="GET"),
    "a route that is not there": Hostile("/v1/admin", 404, "no route"),
    "predict: too many inputs": Hostile(
        PREDICT, 400, "1,024", {"model": "intents", "input": ["x"] * 1025}
    ),
    "predict: an unknown model": Hostile(PREDICT, 404, "nobody", {"model": "nobody", "input": "x"}),
    "predict: a long model": Hostile(
        PREDICT, 404, "no model", {"model": "x" * 100_000, "input": "x"}
    ),
    "predict: an image": Hostile(
        PREDICT,
        400,
        "image",
        {"model": "intents", "input": {"text": "x", "text_pair": "y", "image": "file:///etc"}},
    ),
    "predict: endless weights": Hostile(
        PREDICT,
        400,
        "too large",
        b'{"model": "intents", "input": "x", "fusion": {"weights": {"a": 1e999}}}',
    ),
    "chat: no model": Hostile(CHAT, 400, "model", {"messages": []}),
}
