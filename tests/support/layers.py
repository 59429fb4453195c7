"""What bytes hide: the layers in which engines pack what they send, and what they send."""

from __future__ import annotations

import base64
import binascii
import bz2
import pickle
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam

from pipelines.enrich import build
from pipelines.options import pipeline_options
from schemas.load import load_workload
from schemas.run import RunContext
from transforms.plan_file import read_plan
from transforms.store import open_store
from transforms.worker import WorkerConfig


def layers(data: bytes) -> Iterator[bytes]:
    """The bytes themselves, and what is packed in them as base64, with zlib or bz2 inside."""
    yield data
    for packed in re.findall(rb"[A-Za-z0-9+/=]{64,}", data):
        try:
            raw = base64.b64decode(packed + b"=" * (-len(packed) % 4))
        except binascii.Error:
            continue
        yield raw
        for unpack in (zlib.decompress, bz2.decompress):
            try:
                yield unpack(raw)
            except (zlib.error, OSError, ValueError):
                continue


def job_graph(workload: Path, output: Path) -> Iterator[bytes]:
    """The pipeline's graph as an engine would get it, and the worker's configuration as a pickle."""
    loaded = load_workload(workload)
    context = RunContext("run", loaded.output_uri, loaded.workload.digest(), False, 8)
    plan = sorted((output / "runs").glob("*/plan.parquet"))[-1]
    refs, schema = read_plan(open_store(loaded.output_uri), str(plan.relative_to(output)))
    config = WorkerConfig(loaded.workload, str(loaded.base_dir), context, schema.serialize().to_pybytes())
    pipeline = beam.Pipeline(options=pipeline_options(()))
    build(pipeline, refs, config)
    yield pipeline.to_runner_api().SerializeToString()
    yield pickle.dumps(config)
