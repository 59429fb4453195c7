"""A pool of workers for a cluster's task managers: `python -m pipelines.worker_pool --port 50000`.

Start one beside every task manager and give the run `--environment_type=EXTERNAL
--environment_config=localhost:50000` (each task manager then finds its own). All workers of a pool are
threads of this process: one call engine, one embedder and one device for all of them. Keys come from this
process's environment; the pipeline's graph carries their names only.

It listens on 127.0.0.1 unless `--host` says otherwise. Whoever reaches the port can run code here.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

from transforms.coders import register_arrow_coders
from transforms.process_workers import close_workers

_LOGGER = logging.getLogger(__name__)


def serve(host: str, port: int) -> tuple[int, grpc.Server]:
    """Start a pool; its port (chosen by the system for port 0) and its server.

    Raises:
        OSError: the address can't be listened on.
    """
    register_arrow_coders()
    server = grpc.server(shared_unbounded_instance())
    bound = server.add_insecure_port(f"{host}:{port}")
    if not bound:
        raise OSError(f"{host}:{port} can't be listened on: give a free --port and an address of this host")
    # Buffers are flushed by size only: Beam's flush by time loses elements when threads share a process.
    pool = BeamFnExternalWorkerPoolServicer(use_process=False, data_buffer_time_limit_ms=-1)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    return bound, server


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; then send nothing more and settle what is in flight."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.worker_pool", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=50000)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        port, server = serve(arguments.host, arguments.port)
    except (OSError, RuntimeError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    sys.stdout.write(f"worker pool at {arguments.host}:{port}\n")
    sys.stdout.flush()
    ended.wait()
    close_workers()
    server.stop(grace=None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
