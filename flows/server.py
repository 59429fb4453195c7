"""The Prefect API that a run of the command line reports to: the configured one, or one of its own.

Without a configured API the run gets Prefect's own server, started here instead of by Prefect's client
because that one is left running when the run is killed; this one dies with it (see `pipelines.leash`). It
listens on 127.0.0.1, keeps its state in `$PREFECT_HOME` (by default in Switchgear's cache folder, so
that a Prefect of the user's own is left alone), sends nothing anywhere, and starts while the workload
is being checked.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from flows.first_start import FirstStart
from flows.ports import HOST, free_port
from pipelines.leash import leashed
from schemas.errors import ConfigurationError, SwitchgearError
from transforms.cache import cache_folder

START_TIMEOUT_S = 120.0
_POLL_S = 0.1
_HEALTH_TIMEOUT_S = 5.0
_DRAIN_TIMEOUT_S = 10.0
_LOOPBACK = frozenset({"localhost", HOST, "::1"})


def prepare_environment() -> None:
    """Settle what Prefect reads when it is imported; call it before that.

    Prefect's own usage statistics are off unless the user says otherwise, and its files go into
    Switchgear's cache folder unless the user has a Prefect home.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if "PREFECT_HOME" not in os.environ and not Path.home().joinpath(".prefect", "profiles.toml").exists():
        os.environ["PREFECT_HOME"] = str(cache_folder() / "prefect")


def server_command(port: int) -> list[str]:
    """The command line of Prefect's server on a port of this machine."""
    return [
        sys.executable,
        "-P",
        "-m",
        "uvicorn",
        "--factory",
        "prefect.server.api.server:create_app",
        f"--host={HOST}",
        f"--port={port}",
        "--log-level=error",
        "--lifespan=on",
    ]


class EmbeddedServer:
    """Prefect's server as a child of this process, on a free port of 127.0.0.1."""

    def __init__(self, home: Path, command: Callable[[int], list[str]] = server_command) -> None:
        self._command = command
        self._log = home / "server.log"
        self._home = home
        self._first = FirstStart(home)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs, negative for a signal."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it, and wait for nothing but another one's first start over the same folder.

        The thread that calls this must outlive the server.

        Raises:
            ConfigurationError: its folder can't be written.
        """
        with self._opened_log() as log:
            self._first.wait(START_TIMEOUT_S)
            port = free_port()
            self.url = f"http://{HOST}:{port}/api"
            self._process = subprocess.Popen(
                leashed(self._command(port)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **_server_settings(), "PREFECT_HOME": str(self._home)},
            )

    def _opened_log(self) -> IO[bytes]:
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            return open(self._log, "wb")
        except OSError as error:
            raise ConfigurationError(
                f"{self._home}: Prefect's state can't be kept there ({error.strerror}). Give a folder that "
                "can be written in SWITCHGEAR_CACHE_DIR or PREFECT_HOME"
            ) from None

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until it answers.

        Raises:
            SwitchgearError: it ended, or did not answer in time.
        """
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while not has_health(self.url):
            if self._process.poll() is not None:
                raise SwitchgearError(
                    f"Prefect's embedded server ended with exit code {self._process.returncode}. "
                    f"See {self._log}, or set PREFECT_API_URL to a server of your own"
                )
            if time.monotonic() > deadline:
                raise SwitchgearError(
                    f"Prefect's embedded server did not answer within {timeout_s:.0f} s. "
                    f"See {self._log}, or set PREFECT_API_URL to a server of your own"
                )
            time.sleep(_POLL_S)
        self._first.made()

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop it: SIGTERM, then SIGKILL."""
        self._first.release()
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def prefect_api(meanwhile: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Have a Prefect API for the flow runs of the block; its address.

    `meanwhile` is called while an embedded server starts, which takes 5 s, and 13 s the first time.

    Raises:
        ConfigurationError: the configured API can't be reached, or must not be used.
    """
    prepare_environment()
    server = None if _is_configured_by_environment() else EmbeddedServer(_home())
    if server is not None:
        server.start()  # while Prefect is imported and the profile looked at
    try:
        url = _configured_url()
        if url is not None:
            refuse_open_api(url, authenticated=_has_credentials())
            require_api(url)
            meanwhile()
            yield url
            return
        server = server or _started(EmbeddedServer(_home()))
        meanwhile()
        server.wait_until_ready()
        with _pointing_at(server.url):
            yield server.url
    finally:
        if server is not None:
            _send_the_rest()
            server.stop()


def configured_server() -> str:
    """The address of the server that PREFECT_API_URL or the Prefect profile names.

    Raises:
        ConfigurationError: none is named, it does not answer, or it lets anybody in.
    """
    prepare_environment()
    url = _configured_url()
    if url is None:
        raise ConfigurationError(
            "no Prefect server is configured: set PREFECT_API_URL, or start one with `switchgear serve`"
        )
    refuse_open_api(url, authenticated=_has_credentials())
    require_api(url)
    return url


def require_api(url: str) -> None:
    """Raise a ConfigurationError if no Prefect API answers at `url`."""
    if not has_health(url):
        raise ConfigurationError(
            f"PREFECT_API_URL = {url}: no Prefect server answers there. Start it (`prefect server start`), "
            "mend the address, or unset it: then Switchgear starts an embedded server"
        )


def refuse_open_api(url: str, *, authenticated: bool) -> None:
    """Refuse a server on another machine that lets anybody in: whoever reaches it could start runs."""
    if urlsplit(url).hostname in _LOOPBACK or authenticated:
        return
    raise ConfigurationError(
        f"PREFECT_API_URL = {url}: this server is on another machine and no credential for it is set. "
        "Set PREFECT_API_KEY or PREFECT_API_AUTH_STRING, or use a server on this machine"
    )


def quiet_prefect() -> None:
    """Keep Prefect's own lines off the terminal; its server still gets them.

    Its handlers are filtered and not removed: Prefect sets up its logging again and again, and puts
    handlers back that it misses.
    """
    from prefect.logging.configuration import setup_logging

    setup_logging()
    for logger in (logging.getLogger(), *map(logging.getLogger, ("uvicorn", "fastapi"))):
        for handler in logger.handlers:
            if type(handler).__name__ == "PrefectConsoleHandler":
                handler.addFilter(_is_not_prefects)


def _is_not_prefects(record: logging.LogRecord) -> bool:
    return not record.name.startswith("prefect")


def _send_the_rest() -> None:
    """Have Prefect send what it still holds, or its exit handlers wait a minute for a server that is gone."""
    handlers, worker = sys.modules.get("prefect.logging.handlers"), sys.modules.get("prefect.events.worker")
    if handlers is not None:
        handlers.APILogWorker.drain_all(timeout=_DRAIN_TIMEOUT_S)
    if worker is not None:
        worker.EventsWorker.drain_all(timeout=_DRAIN_TIMEOUT_S)


def _started(server: EmbeddedServer) -> EmbeddedServer:
    server.start()
    return server


def _home() -> Path:
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()


def _is_configured_by_environment() -> bool:
    return bool(os.environ.get("PREFECT_API_URL")) or _home().joinpath("profiles.toml").exists()


def _configured_url() -> str | None:
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def _has_credentials() -> bool:
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    return api.key is not None or api.auth_string is not None


@contextmanager
def _pointing_at(url: str) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        yield


def _server_settings() -> dict[str, str]:
    """What Prefect's client sets when it starts a temporary server itself, and no usage statistics."""
    return {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "0",
    }


def has_health(url: str) -> bool:
    """Whether a Prefect API answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT_S) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False
