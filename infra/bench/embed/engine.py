"""One engine of the race, in a process of its own: texts in, vectors out, and what it took.

Runs in the engine's own environment, so it imports nothing of ours but for our own engine. Protocol:
it prints a line of JSON when it is ready, which says how it works if that was not clear; then each line of
standard input names a JSON file of texts and an .npy file for their vectors, and is answered by a line with
seconds, CPU seconds and peak memory.

    python engine.py ENGINE MODEL_FOLDER CACHE_FOLDER MAX_LENGTH THREADS DEVICE

DEVICE is cpu or gpu; on a GPU there are our own engine, sentence-transformers on torch, and the peak.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = int(sys.argv[5])
DEVICE = sys.argv[6]
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="true")

import numpy as np  # noqa: E402

Embed = Callable[[list[str]], np.ndarray]
BATCH = {"cpu": 32, "gpu": 256}  # of sentence-transformers: its default, and what fills a GPU
GEMM = {"cpu": (1024, 2048, 4096), "gpu": (16384,)}  # sides of the matrices whose product is the peak
GROUP = 2048  # texts of ours on a GPU, as many as a run embeds at a time
SMALL_BATCH = 8  # of the hand-driven engines: what was fastest of 4, 8, 16 and 32
OPENVINO_PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def ours(precision: str, model: Path, cache: Path, max_length: int) -> Embed:
    """Switchgear's own embedder."""
    from schemas.backends import EmbedderBackend
    from transforms.embed.embedder import open_embedder

    backend = EmbedderBackend(
        provider="jax", model_path=str(model), max_length=max_length, compute_dtype=precision
    )
    embedder = open_embedder(backend, base_dir=Path(), cache_dir=cache / "switchgear")
    import jax

    found = jax.devices()[0]
    print(f"on {found.device_kind}", file=sys.stderr, flush=True)
    if (found.platform == "cpu") != (DEVICE == "cpu"):
        raise SystemExit(f"asked for {DEVICE}, and JAX found {found.device_kind}")

    def embed(texts: list[str]) -> np.ndarray:
        size = GROUP if DEVICE == "gpu" else len(texts)
        groups = [texts[at : at + size] for at in range(0, len(texts), size)]
        with ThreadPoolExecutor(2) as pool:  # as in a run: one group on the device, the next one tokenised
            made = np.concatenate([each.vectors for each in pool.map(embedder.embed, groups)])
        stats = embedder.stats()
        print(f"{stats.compilations} programs, {stats.filled:.3f} filled", file=sys.stderr, flush=True)
        return made

    return embed


def sentence_transformers(backend: str, precision: str, model: Path, cache: Path, max_length: int) -> Embed:
    """sentence-transformers at its defaults, on one of its backends; on a GPU with fused attention."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    folder, options = model, {}
    if backend == "torch":
        options = {"dtype": getattr(torch, precision)}
        if DEVICE == "gpu":
            options["attn_implementation"] = fused_attention()
    else:
        folder = exported(backend, model, cache)
    if backend == "onnx":
        options = {"provider": "CPUExecutionProvider", "session_options": _onnx_options()}
    if backend == "openvino":
        options = {"ov_config": openvino_options(precision)}
    where = "cuda" if DEVICE == "gpu" else "cpu"
    loaded = SentenceTransformer(str(folder), device=where, backend=backend, model_kwargs=options)
    loaded.max_seq_length = max_length
    size = BATCH[DEVICE]
    return lambda texts: loaded.encode(texts, batch_size=size, show_progress_bar=False).astype(np.float32)


def fused_attention() -> str:
    """What transformers calls the fastest attention that is installed here."""
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def exported(backend: str, model: Path, cache: Path) -> Path:
    """The model in a backend's own format, exported once."""
    folder = cache / backend
    if not (folder / "modules.json").exists():
        from sentence_transformers import SentenceTransformer

        loaded = SentenceTransformer(str(model), device="cpu", backend=backend, model_kwargs={"export": True})
        loaded.save_pretrained(str(folder))
    return folder


def _onnx_options() -> object:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    return options


def openvino_options(precision: str) -> dict[str, object]:
    """OpenVINO on all threads, in one precision."""
    return {
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISION[precision],
    }


def onnxruntime_by_hand(precision: str, model: Path, cache: Path, max_length: int) -> Embed:
    """Onnxruntime driven directly."""
    import onnxruntime

    assert precision == "float32"
    file = exported("onnx", model, cache) / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), _onnx_options(), providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}
    return by_hand(lambda feed: session.run(None, feed)[0], names, model, max_length)


def fastembed(precision: str, model: Path, cache: Path, max_length: int) -> Embed:
    """Fastembed over the ONNX file that sentence-transformers exports.

    Its documentation says to lower batch_size where memory runs out: at its default of 256 texts of up to
    512 tokens it took 16 GB.
    """
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    assert precision == "float32"
    dim = json.loads((model / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    nowhere = ModelSource(url="file:///nowhere")  # it lies here already
    TextEmbedding.add_custom_model("local", PoolingType.MEAN, True, nowhere, dim, "onnx/model.onnx")
    loaded = TextEmbedding("local", specific_model_path=str(exported("onnx", model, cache)), threads=THREADS)
    loaded.model.tokenizer.enable_truncation(max_length)
    return lambda texts: np.array(list(loaded.embed(texts, batch_size=32)), np.float32)


def openvino_by_hand(precision: str, model: Path, cache: Path, max_length: int) -> Embed:
    """OpenVINO driven directly."""
    import openvino

    file = exported("openvino", model, cache) / "openvino" / "openvino_model.xml"
    compiled = openvino.Core().compile_model(str(file), "CPU", openvino_options(precision))
    names = {name for each in compiled.inputs for name in each.get_names()}
    request = compiled.create_infer_request()
    return by_hand(lambda feed: request.infer(feed)[0], names, model, max_length)


def by_hand(
    run: Callable[[dict[str, np.ndarray]], np.ndarray], names: set[str], model: Path, max_length: int
) -> Embed:
    """Sorted by length, in small batches, mean-pooled with numpy: what an expert would write."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)

    def embed(texts: list[str]) -> np.ndarray:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        order = np.argsort([len(each) for each in ids], kind="stable")
        vectors: list[np.ndarray] = [np.zeros(0)] * len(ids)
        for start in range(0, len(order), SMALL_BATCH):
            own = order[start : start + SMALL_BATCH]
            longest = max(len(ids[text]) for text in own)
            tokens, mask = (np.zeros((len(own), longest), np.int64) for _ in range(2))
            for row, text in enumerate(own):
                tokens[row, : len(ids[text])], mask[row, : len(ids[text])] = ids[text], 1
            feed = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
            states = run({name: values for name, values in feed.items() if name in names})
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            for text, vector in zip(own, pooled, strict=True):
                vectors[text] = vector / np.linalg.norm(vector)
        return np.array(vectors, np.float32)

    return embed


def peak(precision: str) -> Embed:
    """GFLOP/s of a large GEMM in torch, of several sizes the fastest; its only vector is that number."""
    import torch

    torch.set_num_threads(THREADS)
    where = "cuda" if DEVICE == "gpu" else "cpu"
    numbers = getattr(torch, precision)

    def seconds(side: int) -> float:
        left, right = (torch.randn(side, side, device=where).to(numbers) for _ in range(2))
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            torch.mm(left, right)
            if DEVICE == "gpu":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        return best

    return lambda _: np.array([[max(2 * side**3 / seconds(side) / 1e9 for side in GEMM[DEVICE])]])


def opened(engine: str, model: Path, cache: Path, max_length: int) -> Embed:
    """The engine of that name, `kind-precision`."""
    kind, precision = engine.rsplit("-", 1)
    if kind == "switchgear":
        return ours(precision, model, cache, max_length)
    if kind == "peak":
        return peak(precision)
    if kind == "onnxruntime":
        return onnxruntime_by_hand(precision, model, cache, max_length)
    if kind == "fastembed":
        return fastembed(precision, model, cache, max_length)
    if kind == "openvino":
        return openvino_by_hand(precision, model, cache, max_length)
    return sentence_transformers(kind.removeprefix("st-"), precision, model, cache, max_length)


def peak_memory_mb() -> int:
    """The most memory that this process ever held (not its parent's, as getrusage would have it)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    return 0


def main() -> None:
    """Answers until standard input ends."""
    engine, model, cache, max_length = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not look like an answer
    embed = opened(engine, model, cache, max_length)
    how = f"has {fused_attention()} attention" if DEVICE == "gpu" and engine.startswith("st-") else ""
    print(json.dumps({"ready": engine, "how": how}), file=answers, flush=True)
    for line in sys.stdin:
        source, target = json.loads(line)
        texts = json.loads(Path(source).read_text(encoding="utf-8"))
        before, started = os.times(), time.perf_counter()
        vectors = embed(texts)
        seconds, after = time.perf_counter() - started, os.times()
        np.save(target, vectors)
        cpu = after.user + after.system - before.user - before.system
        answer = {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_memory_mb()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
