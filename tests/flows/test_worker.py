"""The launcher against real child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.worker import Worker, WorkerCommand, WorkerEnd, _lines
from pipelines.leash import PARENT_GONE, leashed

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[[str], Path]
PATIENCE_S = 120.0


def command(path: Path, log: Path, **more: Any) -> WorkerCommand:
    return WorkerCommand((sys.executable, str(path)), log, **more)


def run(path: Path, log: Path, **more: Any) -> tuple[WorkerEnd, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return Worker(command(path, log, **more), events.append).run(), events


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        threading.Event().wait(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_worker_that_says_done_and_exits_0_ran_to_its_end(script: Script, tmp_path: Path) -> None:
    path = script('print(\'{"event":"progress","group":1}\'); print(\'{"event":"done"}\')')

    end, events = run(path, tmp_path / "log")

    assert end == WorkerEnd(0)
    assert events == [{"event": "progress", "group": 1}]


def test_exit_code_0_without_done_is_an_error(script: Script, tmp_path: Path) -> None:
    end, _ = run(script("pass"), tmp_path / "log")

    assert end.exit_code == 0
    assert end.error.startswith("it ended without saying that it was through")


def test_done_with_another_exit_code_is_an_error(script: Script, tmp_path: Path) -> None:
    end, _ = run(script('print(\'{"event":"done"}\'); raise SystemExit(1)'), tmp_path / "log")

    assert end.error.startswith("it ended with exit code 1")


def test_the_last_words_on_standard_error_are_in_the_sentence_and_all_of_them_in_the_log(
    script: Script, tmp_path: Path
) -> None:
    path = script("import sys\nfor i in range(5): print('line', i, file=sys.stderr)\nsys.exit(7)")
    log = tmp_path / "logs" / "group-0001.log"

    end, _ = run(path, log)

    assert end.error == f"it ended with exit code 7: line 2 | line 3 | line 4. Log: {log}"
    assert log.read_text().splitlines() == [f"line {i}" for i in range(5)]


def test_lines_about_what_went_well_explain_no_end(script: Script, tmp_path: Path) -> None:
    said = [
        "2026-11-22T09:15:04.120Z WARNING event=log message=the disk is full",
        "2026-11-22T09:15:04.121Z INFO event=batch.committed",
        '{"at": "2026-11-22T09:15:04.122Z", "level": "INFO", "event": "route.done"}',
    ]
    path = script(f"import sys; print({chr(10).join(said)!r}, file=sys.stderr); sys.exit(3)")

    end, _ = run(path, tmp_path / "log")

    assert end.error.startswith(f"it ended with exit code 3: {said[0]}. Log: ")


def test_a_megabyte_on_standard_error_blocks_nobody(script: Script, tmp_path: Path) -> None:
    path = script(
        "import sys\nfor _ in range(1024): print('x' * 1023, file=sys.stderr)\nprint('{\"event\":\"done\"}')"
    )

    end, _ = run(path, tmp_path / "log")

    assert end == WorkerEnd(0)
    assert (tmp_path / "log").stat().st_size == 1024 * 1024


def test_a_configuration_error_keeps_its_own_message(script: Script, tmp_path: Path) -> None:
    path = script(
        'print(\'{"event":"error","class":"ModelError","message":"no model in /m"}\'); raise SystemExit(2)'
    )

    end, _ = run(path, tmp_path / "log")

    assert end == WorkerEnd(2, "no model in /m", configuration=True)


def test_an_error_event_with_exit_code_1_is_no_configuration_error(script: Script, tmp_path: Path) -> None:
    path = script(
        'print(\'{"event":"error","class":"StoreError","message":"disk full"}\'); raise SystemExit(1)'
    )

    assert run(path, tmp_path / "log")[0] == WorkerEnd(1, f"disk full. Log: {tmp_path / 'log'}")


@pytest.mark.parametrize(
    "garbage",
    ["WARNING: something", "{not json", '["a", "list"]', '{"no": "event"}', '{"event": 5}', "\x00\xff", ""],
)
def test_garbage_on_standard_output_goes_into_the_log_and_not_into_the_protocol(
    garbage: str, script: Script, tmp_path: Path
) -> None:
    path = script(
        f"print({garbage!r}.encode('latin-1', 'replace').decode('latin-1'), flush=True)\n"
        'print(\'{"event":"batch","report":{}}\')\nprint(\'{"event":"done"}\')'
    )

    end, events = run(path, tmp_path / "log")

    assert end == WorkerEnd(0)
    assert events == [{"event": "batch", "report": {}}]
    assert (tmp_path / "log").read_bytes().startswith(b"stdout: ")


def test_a_last_line_without_a_newline_counts(script: Script, tmp_path: Path) -> None:
    end, _ = run(script('import sys; sys.stdout.write(\'{"event":"done"}\')'), tmp_path / "log")

    assert end == WorkerEnd(0)


def test_a_line_longer_than_a_pipe_arrives_whole(script: Script, tmp_path: Path) -> None:
    path = script('print(\'{"event":"batch","text":"\' + "x" * 300000 + \'"}\'); print(\'{"event":"done"}\')')

    end, events = run(path, tmp_path / "log")

    assert end == WorkerEnd(0)
    assert len(events[0]["text"]) == 300_000


def test_a_killed_worker_is_said_to_be_killed(script: Script, tmp_path: Path) -> None:
    path = script("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    end, _ = run(path, tmp_path / "log")

    assert end.exit_code == -signal.SIGKILL
    assert end.error.startswith("it was killed by signal SIGKILL")


def test_a_grandchild_that_holds_the_pipe_does_not_keep_the_launcher_waiting(
    script: Script, tmp_path: Path
) -> None:
    path = script(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        'print(\'{"event":"batch","pid":%d}\' % child.pid, flush=True)\n'
        'print(\'{"event":"done"}\', flush=True)'
    )

    end, events = run(path, tmp_path / "log")

    assert end == WorkerEnd(0)
    os.kill(events[0]["pid"], signal.SIGKILL)


def test_what_a_worker_writes_while_its_end_is_noticed_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()

    class Ending:
        """Says its last words at the very moment in which it is looked whether it has ended."""

        stdout = open(reader, "rb", buffering=0)  # noqa: SIM115
        said = False

        def poll(self) -> int:
            if not self.said:
                os.write(writer, b'{"event":"batch"}\n{"event":"done"}\n')
                self.said = True
            return 0

    monkeypatch.setattr("flows.worker._POLL_MS", 10)
    process: Any = Ending()  # the pipe stays open, as if a grandchild held it

    assert list(_lines(process)) == [b'{"event":"batch"}', b'{"event":"done"}']
    Ending.stdout.close()
    os.close(writer)


def test_stopping_asks_first_and_the_worker_can_end_in_order(script: Script, tmp_path: Path) -> None:
    path = script(
        "import signal, sys, time\n"
        'def end(number, frame):\n    print(\'{"event":"done"}\', flush=True)\n    sys.exit(0)\n'
        "signal.signal(signal.SIGTERM, end)\n"
        'print(\'{"event":"batch"}\', flush=True)\ntime.sleep(300)'
    )
    worker = Worker(
        command(path, tmp_path / "log"), lambda _: threading.Thread(target=worker.terminate).start()
    )

    assert worker.run() == WorkerEnd(0, stopped=True)


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(script: Script, tmp_path: Path) -> None:
    path = script(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        'print(\'{"event":"batch"}\', flush=True)\ntime.sleep(300)'
    )
    started = threading.Event()
    worker = Worker(command(path, tmp_path / "log"), lambda _: started.set())
    ends: list[WorkerEnd] = []
    thread = threading.Thread(target=lambda: ends.append(worker.run()))
    thread.start()
    assert started.wait(PATIENCE_S)

    worker.stop(grace_s=0.2)
    thread.join(PATIENCE_S)

    assert ends == [WorkerEnd(-signal.SIGKILL, "it was stopped before it was through", stopped=True)]


def test_a_worker_that_was_stopped_before_it_started_never_starts(script: Script, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    worker = Worker(command(script(f"open({str(marker)!r}, 'w')"), tmp_path / "log"), lambda _: None)

    worker.stop()
    end = worker.run()

    assert end.stopped
    assert not marker.exists()


def test_an_error_in_the_listener_stops_the_worker(script: Script, tmp_path: Path) -> None:
    path = script(
        'import os, time\nprint(\'{"event":"batch","pid":%d}\' % os.getpid(), flush=True)\ntime.sleep(300)'
    )
    seen: list[int] = []

    def listen(event: dict[str, Any]) -> None:
        seen.append(event["pid"])
        raise KeyError("report")

    with pytest.raises(KeyError):
        Worker(command(path, tmp_path / "log"), listen).run(grace_s=5)

    assert not is_alive(seen[0])


def test_the_worker_inherits_environment_and_descriptors_and_nothing_stands_on_its_command_line(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-canary")
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    path = script(
        "import json, os, sys\n"
        f"os.fstat({descriptor})\n"
        "line = open('/proc/self/cmdline').read()\n"
        "print(json.dumps({'event': 'batch', 'key': os.environ['SOME_API_KEY'], 'added': os.environ['ADDED'],"
        " 'leaks': 'canary' in line}))\n"
        'print(\'{"event":"done"}\')'
    )

    end, events = run(path, tmp_path / "log", inherit=(descriptor,), environment=(("ADDED", "yes"),))
    os.close(descriptor)

    assert end == WorkerEnd(0)
    assert events == [{"event": "batch", "key": "sk-canary", "added": "yes", "leaks": False}]


LAUNCHER = """
import sys, threading
sys.path.insert(0, {root!r})
from pathlib import Path
from flows.worker import Worker, WorkerCommand
worker = Worker(
    WorkerCommand((sys.executable, {child!r}), Path({log!r})),
    lambda event: print(event["pid"], flush=True),
)
thread = threading.Thread(target=worker.run)
thread.start()
thread.join()
"""
CHILD = (
    "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    'print(\'{"event":"batch","pid":%d}\' % os.getpid(), flush=True)\ntime.sleep(300)'
)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_worker_dies_with_its_launcher_even_when_that_is_killed(script: Script, tmp_path: Path) -> None:
    child = script(CHILD)
    launcher = script(LAUNCHER.format(root=str(ROOT), child=str(child), log=str(tmp_path / "log")))
    process = subprocess.Popen([sys.executable, str(launcher)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert is_alive(pid)

    process.kill()
    process.wait()
    process.stdout.close()

    wait_for(lambda: not is_alive(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_program_whose_parent_is_gone_before_it_asked_ends_at_once(script: Script, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    line = leashed([sys.executable, str(script(f"open({str(marker)!r}, 'w')"))])
    line[4] = str(os.getpid() + 1)  # as if the parent had been another process, which has died

    assert subprocess.run(line, check=False).returncode == PARENT_GONE
    assert not marker.exists()


def test_a_worker_has_a_session_of_its_own_so_that_ctrl_c_reaches_the_launcher_alone(
    script: Script, tmp_path: Path
) -> None:
    path = script(
        "import os, json\nprint(json.dumps({'event': 'batch', 'leads': os.getsid(0) == os.getpid()}))\n"
        'print(\'{"event":"done"}\')'
    )

    assert run(path, tmp_path / "log")[1] == [{"event": "batch", "leads": True}]
