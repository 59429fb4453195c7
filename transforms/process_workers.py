"""The workers of this process, one for a run: who makes it, who shares it, and who closes it.

A launcher that works in its own process owns its run's worker from `worker_of` to `forget_worker`. Where
an engine starts the processes, every user joins the worker and leaves it again, and the last one closes it.
"""

from __future__ import annotations

import threading

from transforms.garbage import collect_seldom
from transforms.openers import Openers
from transforms.worker import Worker, WorkerConfig

_WORKERS: dict[str, Worker] = {}
_WORKERS_LOCK = threading.Lock()


def worker_of(config: WorkerConfig, openers: Openers | None = None) -> Worker:
    """This process's worker for a run; made, with these openers, when it is first asked for.

    Whoever calls this ends it with `forget_worker`.
    """
    with _WORKERS_LOCK:
        if config.run.run_id not in _WORKERS:
            openers = openers or Openers(shares_embedder=config.run.processes > 1)
            _WORKERS[config.run.run_id] = Worker(config, openers, is_owned=True)
            collect_seldom(True)
        return _WORKERS[config.run.run_id]


def join_worker(config: WorkerConfig) -> Worker:
    """This process's worker for a run, for one more user of it, who leaves it with `leave_worker`."""
    with _WORKERS_LOCK:
        worker = _WORKERS.get(config.run.run_id)
        if worker is None:
            # An engine starts as many processes on a machine as it likes.
            worker = _WORKERS[config.run.run_id] = Worker(config, Openers(shares_embedder=True))
            collect_seldom(True)
            worker.watch_for_stop()
        worker.users += 1
        return worker


def leave_worker(config: WorkerConfig) -> None:
    """One user less; with the last one the worker is closed, unless somebody owns it."""
    with _WORKERS_LOCK:
        worker = _WORKERS.get(config.run.run_id)
        if worker is None:
            return
        worker.users -= 1
        if worker.users > 0 or worker.is_owned:
            return
        del _WORKERS[config.run.run_id]
        collect_seldom(bool(_WORKERS))
    worker.close()


def close_workers() -> None:
    """Close every worker of this process: what is in flight is settled, whoever still uses them."""
    with _WORKERS_LOCK:
        workers = list(_WORKERS.values())
        _WORKERS.clear()
        collect_seldom(False)
    for worker in workers:
        worker.close()


def forget_worker(config: WorkerConfig) -> None:
    """Close a run's worker and let go of it."""
    with _WORKERS_LOCK:
        worker = _WORKERS.pop(config.run.run_id, None)
        collect_seldom(bool(_WORKERS))
    if worker is not None:
        worker.close()
