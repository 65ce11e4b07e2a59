"""Two servers on one store: the second one is refused, and a server that has ended in any way holds nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serve.graph.lifecycle import ServerError
from serve.graph.store_lock import only_server

HOLD = """
import sys
from pathlib import Path
from serve.graph.store_lock import only_server
with only_server(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_store_has_one_server_until_its_process_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(ServerError, match=r"Another server uses the store .*--store"),
            only_server(tmp_path),
        ):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with only_server(tmp_path):
            pass
