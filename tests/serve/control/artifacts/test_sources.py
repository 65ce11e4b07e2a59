"""The places that adapters may come from: a real S3 server, and fsspec's memory for stores without a server here."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from serve.control.artifacts.sources import NotAllowed, Sources
from serve.control.artifacts.store import StoreError
from serve.digest import folder_digest
from serve.location import Location, LocationError
from tests.docs.log_lines import line_with
from tests.serve.fakes import make_adapter
from tests.serve.world import World, committed, refused

BUCKET = "adapters"


class Bucket:
    """A bucket on a server that speaks S3."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def upload(self, folder: Path, prefix: str) -> str:
        """The folder's URI."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder)}", file.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket. Its credentials are in the environment, as for the server."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    return Bucket(client)


def sources(*prefixes: str, **limits: Any) -> Sources:
    return Sources([], [Location.parse(prefix) for prefix in prefixes], **limits)


def test_an_adapter_is_fetched_from_s3_as_it_is(bucket: Bucket, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", 1)
    uri = bucket.upload(folder, "team/one")
    bucket.put("team/one/optimizer.pt", b"not part of the adapter")
    bucket.put("team/one/checkpoint-7/adapter_config.json", b"nor this")
    bucket.put("team/one-other/adapter_config.json", b"a neighbour whose name begins alike")
    bucket.put("team/one/", b"")

    (tmp_path / "copy").mkdir()
    sources("s3://adapters/team").fetch(uri + "/", tmp_path / "copy")

    assert folder_digest(tmp_path / "copy") == folder_digest(folder)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "copy").rglob("*.json")}
    assert modes == {0o444}


async def test_an_adapter_is_swapped_in_from_s3_and_read_anew_each_time(
    world: World, bucket: Bucket
) -> None:
    world.options = {"adapter_prefixes": [Location.parse("s3://adapters/team")]}
    await world.start()
    digests = []
    for seed in (100, 101):
        folder = make_adapter(world.folder / f"{seed}", seed)
        uri = bucket.upload(folder, "team/latest")
        committed(await world.ask({"members": {"a": uri}}))
        held = world.engines[0].held[f"intents@{await world.active()}"].ensemble
        digests.append(held.members[0].adapters[0].digest)
        assert digests[-1] == folder_digest(folder)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("uri", "status", "says"),
    [
        ("s3://adapters/private/one", 403, "outside the remote places"),
        ("s3://other/team/one", 403, "outside"),
        ("s3://adapters/team-two/one", 403, "outside"),
        ("gs://adapters/team/one", 403, "outside"),
        ("s3://adapters/team/../private/one", 400, "'..'"),
        ("s3://adapters/team/nothing", 400, "nothing at s3://adapters/team/nothing"),
        ("s3://adapters/team/one?versionId=7", 400, "plain"),
        ("s3://adapters/team/*", 400, "plain"),
        ("s3://AKIAKEY:hunter2@adapters/team/one", 400, "credentials"),
        ("s3://adapters/team::file:///etc", 400, "plain"),
        ("simplecache::s3://adapters/team/one", 400, "not a URI that adapters come from"),
        ("zip://one::s3://adapters/team/one.zip", 400, "not a URI that adapters come from"),
        ("s3:///team/one", 400, "plain name of a bucket"),
    ],
)
async def test_remote_places_that_are_refused(
    world: World, bucket: Bucket, uri: str, status: int, says: str
) -> None:
    world.options = {"adapter_prefixes": [Location.parse("s3://adapters/team")]}
    await world.start()
    bucket.upload(make_adapter(world.folder / "x", 1), "private/one")
    message = refused(await world.ask({"members": {"a": uri}}), status)
    assert says in message
    assert "hunter2" not in message
    assert await world.active() == 1


def test_what_is_too_large_is_refused_before_and_while_it_comes(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("big/one.txt", b"x" * 3000)
    limited = sources("s3://adapters", max_bytes=2000)
    with pytest.raises(StoreError, match=r"too large.*CHOIR_MAX_ADAPTER_GB"):
        limited.fetch("s3://adapters/big", tmp_path)
    assert list(tmp_path.iterdir()) == []

    # A listing that lies.
    monkeypatch.setattr("serve.control.artifacts.quota.Quota.expect", lambda *_: None)
    with pytest.raises(StoreError, match="too large"):
        limited.fetch("s3://adapters/big", tmp_path)


def test_too_many_files_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(101):
        bucket.put(f"many/{number}.txt", b"")
    with pytest.raises(StoreError, match="at most 100 files"):
        sources("s3://adapters").fetch("s3://adapters/many", tmp_path)


def test_what_never_arrives_is_given_up(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("slow/one.txt", b"x")
    with pytest.raises(StoreError, match="did not arrive within 0 seconds"):
        sources("s3://adapters", seconds=0).fetch("s3://adapters/slow", tmp_path)


@pytest.mark.parametrize("key", ["../../outside.txt", "x/../../outside.txt", "./x", "a//b"])
def test_a_key_never_leads_out_of_the_store(bucket: Bucket, tmp_path: Path, key: str) -> None:
    target = tmp_path / "deep" / "copy"
    target.mkdir(parents=True)
    bucket.put(f"evil/{key}", b"x")
    with pytest.raises(StoreError, match="not a plain path"):
        sources("s3://adapters").fetch("s3://adapters/evil", target)
    assert not list(tmp_path.rglob("*.txt"))


def test_one_object_is_no_folder(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("one.zip", b"x")
    with pytest.raises(StoreError, match="is not a folder"):
        sources("s3://adapters").fetch("s3://adapters/one.zip", tmp_path)


def test_a_server_that_cannot_be_reached_is_a_sentence_without_secrets(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(StoreError, match=r"s3://adapters/x cannot be read") as caught:
        sources("s3://adapters").fetch("s3://adapters/x", tmp_path)
    assert "hunter2" not in str(caught.value)


def test_progress_is_logged(
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("serve.control.artifacts.quota.PROGRESS_SECONDS", 0.0)
    bucket.put("two/a.txt", b"x" * 10)
    bucket.put("two/b.txt", b"x" * 10)
    with caplog.at_level(logging.INFO, "serve.control"):
        sources("s3://adapters").fetch("s3://adapters/two", tmp_path)
    assert "s3://adapters/two: 2 files to fetch" in caplog.text
    assert "in 1 files so far" in caplog.text
    assert "s3://adapters/two: copied 0.0 MB in 2 files" in caplog.text
    for words in ("files to fetch", "files so far", "copied"):
        assert line_with(words).search(caplog.text), caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [("gs://team/adapters/one", "gs://team/adapters"), ("hf://org/name@v2/one", "hf://org/name")],
)
def test_google_and_the_hub_go_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, prefix: str
) -> None:
    """fsspec's file system in memory replaces their drivers, since no such server runs here."""
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    opened = []

    def filesystem(scheme: str, **_: Any) -> Any:
        opened.append(scheme)
        return memory

    monkeypatch.setattr("fsspec.filesystem", filesystem)
    path = uri.partition("://")[2]
    folder = make_adapter(tmp_path / "adapter", 1)
    for file in folder.iterdir():
        memory.pipe_file(f"/{path}/{file.name}", file.read_bytes())
    (tmp_path / "copy").mkdir()
    sources(prefix).fetch(uri, tmp_path / "copy")
    assert folder_digest(tmp_path / "copy") == folder_digest(folder)
    assert opened == [uri.partition(":")[0]]


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [("s3", "s3fs", r"choir-serve\[s3\]"), ("gs", "gcsfs", "gcsfs")],
)
def test_a_missing_driver_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(StoreError, match=package):
        sources(f"{scheme}://adapters").fetch(f"{scheme}://adapters/x", tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "hf://datasets/org/name",
        "hf://org/name@refs/pr/1/one",
        "hf://org/name@refs%2Fpr%2F1/one",
        "hf://org/na me",
        "hf://user:token@org/name",
        "s3://bucket/a\\b",
        "s3://bucket//a",
        "s3://bucket/./a",
        "s3://",
        "s3:/bucket/a",
        "s3:bucket",
        "http://example.org/a",
        "gs://bucket/a#b",
        "gs://bucket/a\nb",
    ],
)
def test_uris_that_are_no_plain_place(uri: str) -> None:
    with pytest.raises(LocationError):
        Location.parse(uri)


@pytest.mark.parametrize(
    ("prefix", "uri", "covered"),
    [
        ("s3://b", "s3://b/x", True),
        ("s3://b/", "s3://b", True),
        ("s3://b/x", "s3://b/x/y", True),
        ("s3://b/x", "s3://b/xy", False),
        ("s3://b/x/y", "s3://b/x", False),
        ("s3://b", "gs://b/x", False),
        ("hf://org", "hf://org/name@v1/x", True),
        ("hf://org/name", "hf://org/name@v1", True),
        ("hf://org/name@v1", "hf://org/name@v1/x", True),
        ("hf://org/name@v1", "hf://org/name/x", False),
        ("hf://org/name@v1", "hf://org/name@v2/x", False),
    ],
)
def test_what_a_prefix_covers(prefix: str, uri: str, covered: bool) -> None:
    assert Location.parse(prefix).covers(Location.parse(uri)) is covered


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_becomes_a_link_while_it_is_copied_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A folder becomes a link right after it was checked."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    inner = root / "adapter" / "inner"
    for folder in (inner, outside):
        folder.mkdir(parents=True)
        (folder / "secret.txt").write_text(folder.name)
    lstat = os.lstat

    def look(name: Any, **where: Any) -> os.stat_result:
        seen = lstat(name, **where)
        if name == "secret.txt":
            (inner / name).rename(root / name) if what == "file" else inner.rename(root / "parked")
            link = inner / name if what == "file" else inner
            link.symlink_to(outside / name if what == "file" else outside)
        return seen

    monkeypatch.setattr("serve.control.artifacts.local_copy.os.lstat", look)
    target = tmp_path / "copy"
    target.mkdir()
    if what == "file":
        with pytest.raises(StoreError, match="cannot be copied"):
            Sources([root]).copy(root / "adapter", target)
    else:
        Sources([root]).copy(root / "adapter", target)
    assert [file.read_text() for file in target.rglob("*.txt")] in ([], ["inner"])


def test_an_unreadable_place_says_no_more_than_that(tmp_path: Path) -> None:
    with pytest.raises(NotAllowed, match="--adapter-root"):
        Sources([tmp_path]).fetch("file:///etc/shadow", tmp_path)
