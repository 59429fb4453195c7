"""The Prefect API of a run: the configured one or its own."""

from __future__ import annotations

import http.server
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.server import (
    EmbeddedServer,
    _is_not_prefects,
    prefect_api,
    prepare_environment,
    refuse_open_api,
    require_api,
)
from schemas.errors import ConfigurationError, SwitchgearError


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[str]:
    """Something that answers like a healthy Prefect API."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_healthy_api_is_accepted_with_and_without_a_slash_at_its_end(api: str) -> None:
    require_api(api)
    require_api(f"{api}/")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense", "http://[::bad/api"])
def test_an_api_that_does_not_answer_is_a_configuration_error_that_says_what_to_do(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no Prefect server answers there") as caught:
        require_api(url)

    assert url in str(caught.value)
    assert "unset it" in str(caught.value)


def test_something_else_at_that_address_is_no_prefect_api(api: str) -> None:
    with pytest.raises(ConfigurationError):
        require_api(api.removesuffix("/api"))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:4200/api", "http://localhost/api", "http://[::1]:4200/api"]
)
def test_a_server_on_this_machine_needs_no_credential(url: str) -> None:
    refuse_open_api(url, authenticated=False)


@pytest.mark.parametrize("url", ["http://10.0.0.5:4200/api", "https://prefect.example.com/api"])
def test_a_server_elsewhere_that_lets_anybody_in_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PREFECT_API_AUTH_STRING"):
        refuse_open_api(url, authenticated=False)
    refuse_open_api(url, authenticated=True)


def test_prefects_usage_statistics_are_off_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    prepare_environment()
    assert os.environ["DO_NOT_TRACK"] == "1"

    monkeypatch.setenv("DO_NOT_TRACK", "0")
    prepare_environment()
    assert os.environ["DO_NOT_TRACK"] == "0"


def test_prefects_files_go_into_our_cache_unless_the_user_has_a_prefect_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SWITCHGEAR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PREFECT_HOME", "/of/the/user")
    prepare_environment()
    assert os.environ["PREFECT_HOME"] == "/of/the/user"

    monkeypatch.delenv("PREFECT_HOME")
    prepare_environment()
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "cache" / "prefect")

    monkeypatch.delenv("PREFECT_HOME")
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").touch()
    prepare_environment()
    assert "PREFECT_HOME" not in os.environ


def test_prefects_own_lines_are_kept_off_the_terminal_and_those_of_others_are_not() -> None:
    def record(name: str) -> logging.LogRecord:
        return logging.LogRecord(name, logging.INFO, "", 0, "", None, None)

    assert not _is_not_prefects(record("prefect.flow_runs"))
    assert _is_not_prefects(record("transforms.call"))


def test_the_embedded_server_is_a_real_one_on_loopback_and_knows_of_no_other_runs(
    prefect_server: str,
) -> None:
    from prefect.settings import PREFECT_API_URL

    assert prefect_server.startswith("http://127.0.0.1:")
    assert PREFECT_API_URL.value() == prefect_server
    with urllib.request.urlopen(f"{prefect_server}/admin/version", timeout=120) as answer:
        assert answer.status == 200


def test_a_configured_api_that_is_down_is_said_before_anything_else_is_done(
    prefect_server: str,  # so that Prefect's settings are loaded from a home of the tests' own
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    done: list[str] = []
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        with (
            pytest.raises(ConfigurationError, match="no Prefect server answers there"),
            prefect_api(meanwhile=lambda: done.append("checked")),
        ):
            pytest.fail("there is no API")

    assert done == []


def test_a_configured_api_is_used_as_it_is(api: str, prefect_server: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    done: list[str] = []
    with temporary_settings({PREFECT_API_URL: api}), pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_API_URL", api)
        with prefect_api(meanwhile=lambda: done.append("checked")) as url:
            assert url == api

    assert done == ["checked"]


def test_a_home_that_can_not_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="Give a folder that can be written in SWITCHGEAR_CACHE_DIR"):
        EmbeddedServer(tmp_path / "file" / "prefect").start()


def test_a_server_that_ends_at_once_names_its_log(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, lambda port: [sys.executable, "-c", "raise SystemExit(4)"])
    server.start()

    with pytest.raises(SwitchgearError, match=r"exit code 4. See .*server\.log"):
        server.wait_until_ready()
    server.stop()


def test_a_server_that_never_answers_is_given_up_and_stopped(tmp_path: Path) -> None:
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    server = EmbeddedServer(tmp_path, lambda port: [sys.executable, "-c", sleeper])
    server.start()

    with pytest.raises(SwitchgearError, match="did not answer within 0 s"):
        server.wait_until_ready(timeout_s=0.2)
    server.stop(grace_s=0.1)

    assert server.exit_code == -9


MAKES_A_DATABASE = """
import http.server, os, sys, time
database, port = sys.argv[1] + "/database", int(sys.argv[2])
if not os.path.exists(database):
    os.close(os.open(database + ".making", os.O_CREAT | os.O_EXCL))  # fails if another one is making it
    time.sleep(0.5)
    os.rename(database + ".making", database)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Healthy).serve_forever()
"""


def test_of_two_first_runs_at_once_one_makes_the_database_and_the_other_waits_for_it(tmp_path: Path) -> None:
    def run(_: int) -> bool:
        server = EmbeddedServer(
            tmp_path, lambda port: [sys.executable, "-c", MAKES_A_DATABASE, str(tmp_path), str(port)]
        )
        try:
            server.start()
            server.wait_until_ready()
            return server.exit_code is None
        finally:
            server.stop()

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(run, range(3))) == [True] * 3


STARTER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import flows.server as s
program = "import os, time; open({pid!r}, 'w').write(str(os.getpid())); time.sleep(300)"
server = s.EmbeddedServer(Path({home!r}), lambda port: [sys.executable, "-c", program])
server.start()
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_server_dies_with_a_run_that_is_killed(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    root = str(Path(__file__).resolve().parents[2])
    code = STARTER.format(root=root, home=str(tmp_path), pid=str(noted))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    wait_for(lambda: noted.exists() and noted.read_text() != "")
    stat = Path(f"/proc/{noted.read_text()}/stat")
    assert stat.exists()

    process.kill()
    process.communicate()

    wait_for(lambda: not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        threading.Event().wait(0.01)
