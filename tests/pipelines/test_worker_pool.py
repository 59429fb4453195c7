import socket
import subprocess
import sys

import pytest

from pipelines.worker_pool import main, serve


def test_a_pool_listens_on_loopback_alone() -> None:
    port, server = serve("127.0.0.1", 0)
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5).close()
    finally:
        server.stop(grace=None)


def test_an_address_that_can_not_be_listened_on_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", "192.0.2.1"]) == 2
    assert "192.0.2.1:50000" in capfd.readouterr().err


def test_a_pool_says_where_it_is_and_ends_when_asked() -> None:
    command = [sys.executable, "-m", "pipelines.worker_pool", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pool:
        assert pool.stdout is not None
        line = pool.stdout.readline()
        pool.terminate()
        assert pool.wait(120) == 0
    assert line.startswith("worker pool at 127.0.0.1:")
