"""A step of 1,024 tokens alone on one core, beside the peak of a large GEMM in the same minute.

    .venv/bin/python infra/bench/embed/step.py [--precision bfloat16] [--core 0] [--rounds 3]

The race shows what a column of text takes; this is the part of it that kernels decide. Peak (torch, in an
environment of its own) and step take turns, and of both the fastest counts: other work only slows them.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import race

TOKENS, REPEATS = 1024, 40
LENGTHS = (32, 128, 512)


def open_step(precision: str) -> Callable[[int], float]:
    """A function of a length that runs a step full of texts so long; gives its device seconds."""
    from schemas.backends import EmbedderBackend
    from transforms.embed.device import find_devices
    from transforms.embed.model_files import describe_model
    from transforms.embed.opening import read_parameters
    from transforms.embed.packing import Shape, Step
    from transforms.embed.program import Head
    from transforms.embed.runner import StepRunner
    from transforms.embed.tokenization import TokenizedTexts

    backend = EmbedderBackend(provider="jax", model_path=race.MINILM, compute_dtype=precision)
    model = describe_model(backend, Path())
    head = Head(model.pooling, model.normalize, model.dim)
    runner = StepRunner(find_devices(), model.architecture, read_parameters(model), head, precision)
    ids = np.random.default_rng(0).integers(1000, 20000, TOKENS).astype(np.int32)

    def run(length: int) -> float:
        texts = np.arange(TOKENS // length)
        offsets = np.arange(0, TOKENS + 1, length)
        tokens = TokenizedTexts(ids, offsets, texts, np.zeros(len(texts), bool), {})
        step = Step(Shape(TOKENS, 1, TOKENS // 8), (tuple(texts.tolist()),))
        return runner.run(tokens, [step])[0].device_seconds

    return run


def main() -> None:
    """Prints GFLOP/s of the step and its share of the peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--core", default="0")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(options.core)})
    options.cores, options.device, options.max_length = options.core, "cpu", 512
    race.BUILD.mkdir(parents=True, exist_ok=True)
    model = race.find_folder(race.MINILM, Path())
    step = open_step(options.precision)
    best, peaks = dict.fromkeys(LENGTHS, float("inf")), [0.0]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            peaks.append(race.measure_peaks(model, options, Path(folder)).get(options.precision, 0.0))
            for length in LENGTHS:
                best[length] = min(best[length], *(step(length) for _ in range(REPEATS)))
    print(f"{options.precision}: peak of a GEMM {max(peaks):.0f} GFLOP/s, and of it a step has")
    for length, seconds in best.items():
        rate = race.model_flops(model, np.full(TOKENS // length, float(length))) / seconds / 1e9
        print(f"texts of {length:3}: {seconds * 1e3:6.2f} ms, {rate:5.0f} GFLOP/s, {rate / max(peaks):.0%}")


if __name__ == "__main__":
    main()
