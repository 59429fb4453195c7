"""The environments of the peers: one each, under build/bench/embed, made when they are first needed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "bench" / "embed"
REQUIREMENTS = {
    "torch": ["sentence-transformers>=6.2,<7"],
    "onnx": ["sentence-transformers[onnx]"],
    "openvino": ["sentence-transformers[openvino]"],
    "fastembed": ["fastembed>=0.7"],
    "jax-cuda": [str(ROOT), "jax[cuda12]>=0.10.2,<0.11"],
}
OF_ENGINE = {
    "peak": "torch",
    "st-torch": "torch",
    "st-onnx": "onnx",
    "onnxruntime": "onnx",
    "st-openvino": "openvino",
    "openvino": "openvino",
    "fastembed": "fastembed",
}


def python_of(engine: str, device: str) -> Path | None:
    """The interpreter that an engine runs in; None when its environment can't be made."""
    kind = engine.rsplit("-", 1)[0]
    if kind == "switchgear" and device == "cpu":
        return Path(sys.executable)
    name = "jax-cuda" if kind == "switchgear" else OF_ENGINE[kind]
    folder = BUILD / name
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        print(f"bench-embed: installing {', '.join(REQUIREMENTS[name])} into {folder}", flush=True)
        # Our own overrides keep torch away from the lock, and must not hold here.
        uv = [sys.executable, "-m", "uv", "--no-config"]
        venv = [*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)]
        install = [*uv, "pip", "install", "--quiet", "--python", str(python), *REQUIREMENTS[name]]
        if any(subprocess.run(command, check=False).returncode for command in (venv, install)):
            print(f"bench-embed: {name} can't be installed; its engines are left out", flush=True)
            return None
        done.touch()
    return python
