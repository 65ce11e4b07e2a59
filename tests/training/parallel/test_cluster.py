"""Members trained at once with Ray: the bundle is the same as one after another, and a stopped run can be resumed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from choir_cli.training import train as command
from serve.digest import folder_digest
from serve.ray_options import free_port, own_cluster
from tests.training.conftest import recipe_content
from tests.training.parallel.running import POLL_SECONDS, Running, finished
from training.parallel.options import ClusterError, Parallel
from training.pipeline import train

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use as many threads in this process as a member gets on the cluster: sums depend on it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(bundle: Path) -> Mapping[str, str]:
    """Digest of every adapter."""
    return {
        str(folder.relative_to(bundle)): folder_digest(folder)
        for folder in [*bundle.glob("adapters/*/*"), *bundle.glob("candidates/*")]
    }


def two_members(
    write_recipe: Callable[..., Path], folder: Path, base: Path, *, epochs: int = 2, **second: Any
) -> Path:
    """A recipe whose members differ only in their seeds, and in `second` for the second one."""
    ensemble = {
        "name": "topics",
        "task": "classification",
        "label": "label",
        "defaults": {"epochs": epochs, "batch_size": 36, "rank": 4},
        "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2, **second}],
    }
    content = {"kind": "encoder", "path": str(base)}
    return write_recipe(folder, base=content, ensembles=[ensemble])


def wait_for_checkpoints(running: Running, out: Path) -> list[Path]:
    """Wait until both members have a checkpoint; return their folders."""
    folders = [out / ".choir-train" / "checkpoints" / "topics" / name for name in "ab"]
    while not all(any(each.glob("checkpoint-*/trainer_state.json")) for each in folders):
        assert running.goes_on(), f"the run ended too early: {running.end()[1]}"
        time.sleep(POLL_SECONDS)
    return folders


def test_members_trained_at_once_have_the_weights_of_members_in_turn(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    recipe = two_members(write_recipe, tmp_path, encoder_base)
    in_turn = train(recipe, tmp_path / "in-turn")
    # As if another cluster were this machine's, at an address that nobody has (RFC 5737).
    env = os.environ | {"RAY_ADDRESS": "192.0.2.1:6379"}
    printed = Running(recipe, tmp_path / "at-once", "--parallel", "2", env=env).succeed()
    assert len(weights(in_turn.path)) == 2
    assert weights(tmp_path / "at-once") == weights(in_turn.path)
    for row in ("topics/a ", "topics/b "):
        assert finished(printed, row) == 1


@pytest.mark.slow
def test_a_training_error_reads_the_same_as_without_a_cluster(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    recipe = two_members(write_recipe, tmp_path, encoder_base, target_modules=["no_such_module"])
    status, printed = Running(recipe, tmp_path / "bundle", "--parallel", "2").end()
    assert status == 1
    said = printed.splitlines()[-1]
    assert said.startswith("choir: member 'b': target_modules ['no_such_module'] do not fit")


@pytest.mark.slow
def test_students_wait_for_their_teacher(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    topics = recipe_content()["ensembles"][0] | {"template": "{text}", "verbalizers": {}}
    topics["members"] = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2, "bag": "bootstrap"}]
    lesson = {"kind": "distillation", "teacher": {"ensemble": "topics"}, "learning_rate": 0.01}
    student = {key: topics[key] for key in ("task", "label", "defaults")} | {
        "name": "student",
        "members": [{"name": "a", "seed": 3, "stages": [{"kind": "lora"}, lesson]}],
    }
    base = {"kind": "encoder", "path": str(encoder_base)}
    recipe = write_recipe(tmp_path, base=base, ensembles=[topics, student])
    in_turn = train(recipe, tmp_path / "in-turn")
    printed = Running(recipe, tmp_path / "at-once", "--parallel", "2").succeed()
    assert len(weights(in_turn.path)) == 4
    assert weights(tmp_path / "at-once") == weights(in_turn.path)
    assert "student/a/distillation: teacher" in printed


@pytest.mark.slow
def test_members_that_were_killed_together_go_on_to_the_same_weights(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    recipe = two_members(write_recipe, tmp_path, encoder_base, epochs=300)
    undisturbed = train(recipe, tmp_path / "undisturbed")
    out = tmp_path / "killed"
    running = Running(recipe, out, "--parallel", "2")
    folders = wait_for_checkpoints(running, out)
    running.send(signal.SIGKILL)
    assert running.end()[0] == -signal.SIGKILL
    assert all(folder.is_dir() for folder in folders)
    Running(recipe, out, "--parallel", "2", "--resume").succeed()
    assert weights(out) == weights(undisturbed.path)


@pytest.mark.slow
def test_a_member_whose_process_was_killed_goes_on_to_the_same_weights(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    recipe = two_members(write_recipe, tmp_path, encoder_base, epochs=300)
    undisturbed = train(recipe, tmp_path / "undisturbed")
    out = tmp_path / "killed"
    running = Running(recipe, out, "--parallel", "2")
    wait_for_checkpoints(running, out)
    [killed] = running.processes("ray::topics/a")
    killed.kill()
    printed = running.succeed()
    assert not killed.is_running()
    assert finished(printed, "topics/a ") == 1
    assert weights(out) == weights(undisturbed.path)


@pytest.mark.slow
def test_an_interrupted_run_stops_its_members_and_can_be_resumed_in_turn(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    recipe = two_members(write_recipe, tmp_path, encoder_base, epochs=300)
    out = tmp_path / "interrupted"
    running = Running(recipe, out, "--parallel", "2")
    folders = wait_for_checkpoints(running, out)
    running.send(signal.SIGINT)
    status, printed = running.end()
    assert status == 130
    assert "Traceback" not in printed
    epochs = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    time.sleep(2)
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == epochs
    Running(recipe, out, "--resume").succeed()


@pytest.fixture
def start_cluster() -> Iterator[Callable[..., dict[str, str]]]:
    """Starts a cluster of two nodes with a CPU each on loopback, the second of them behind a command of its own; gives
    the environment of those who may join it, with its address in `RAY_ADDRESS`."""
    with contextlib.ExitStack() as stack:

        def start(*before_second: str) -> dict[str, str]:
            address = f"127.0.0.1:{free_port()}"
            env = os.environ | own_cluster()
            ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
            common = ["--num-cpus", "1", "--node-ip-address", "127.0.0.1"]
            port = address.rpartition(":")[2]
            head = ["--head", "--port", port, "--include-dashboard", "false"]
            for before, place in (((), head), (before_second, ["--address", address])):
                node = subprocess.Popen([*before, *ray, *common, *place], env=env)
                stack.callback(node.wait)
                stack.callback(node.terminate)
                wait_for_port(int(port))
            return env | {"RAY_ADDRESS": address}

        yield start


def wait_for_port(port: int) -> None:
    import socket

    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_SECONDS)


def wait_for_nodes(env: Mapping[str, str], count: int) -> None:
    code = (
        "import ray, time; ray.init(log_to_driver=False)\n"
        f"while len([n for n in ray.nodes() if n['Alive']]) < {count}: time.sleep(0.2)"
    )
    subprocess.run([sys.executable, "-c", code], env={**env}, check=True, timeout=120)


@pytest.mark.slow
def test_a_running_cluster_is_joined_and_keeps_running(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    start_cluster: Callable[..., dict[str, str]],
) -> None:
    env = start_cluster()
    wait_for_nodes(env, 2)
    recipe = two_members(write_recipe, tmp_path, encoder_base)
    in_turn = train(recipe, tmp_path / "in-turn")
    out = tmp_path / "at-once"
    Running(recipe, out, "--ray-address", env["RAY_ADDRESS"], env=env).succeed()
    assert weights(out) == weights(in_turn.path)
    wait_for_nodes(env, 2)


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="this machine gives nobody a file system of their own",
)
def test_a_machine_that_does_not_see_the_bundle_is_named(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    start_cluster: Callable[..., dict[str, str]],
) -> None:
    hidden = f'mount -t tmpfs none {tmp_path} && exec "$@"'
    env = start_cluster(*NAMESPACE, "sh", "-c", hidden, "sh")
    wait_for_nodes(env, 2)
    recipe = two_members(write_recipe, tmp_path, encoder_base)
    out = tmp_path / "bundle"
    status, printed = Running(recipe, out, "--ray-address", env["RAY_ADDRESS"], env=env).end()
    assert status == 1
    assert (
        f"The folder {out / '.choir-train'} is written here and cannot be seen on the machine"
        in printed
    )
    assert "several machines need a shared file system" in printed


@pytest.mark.parametrize(
    "address",
    ["ray://head:10001", "http://head:8265", "local", "head", "", "head:", "AUTO", " auto"],
)
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    said = f"--ray-address takes auto or HOST:PORT, not '{address}'"
    with pytest.raises(ClusterError, match=said):
        Parallel(address).prepare()


@pytest.mark.parametrize("address", ["auto", "head:6379", "192.0.2.1:6379", "[2001:db8::1]:6379"])
def test_the_address_of_a_cluster_is_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Parallel(address).prepare()


def test_an_address_from_the_environment_starts_no_open_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ClusterError, match="RAY_ADDRESS takes auto or HOST:PORT, not 'local'"):
        Parallel("auto").prepare()
    Parallel("192.0.2.1:6379").prepare()


def test_an_empty_address_is_refused(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    """An unset variable of the shell gives an empty address."""
    recipe = two_members(write_recipe, tmp_path, encoder_base)
    with pytest.raises(ClusterError, match="--ray-address takes auto or HOST:PORT, not ''"):
        command(recipe, tmp_path / "bundle", ray_address="")
    assert not (tmp_path / "bundle").exists()
