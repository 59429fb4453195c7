"""Programs of the compilation cache are used only as they were written."""

import os
import zlib
from pathlib import Path

import pytest
import zstandard

from transforms.embed.kept_programs import SEAL, WRITING_S, discard_damaged, seal_programs

PROGRAM = bytes(range(256)) * 40
NOW = 1_800_000_000.0


def kept(folder: Path, name: str, data: bytes) -> Path:
    path = folder / f"{name}-cache"
    path.write_bytes(data)
    os.utime(path, (NOW, NOW))
    return path


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("compress", [zlib.compress, zstandard.ZstdCompressor().compress])
def test_a_sealed_program_stays_until_a_bit_of_it_changes(tmp_path: Path, compress):
    program, other = kept(tmp_path, "a", compress(PROGRAM)), kept(tmp_path, "b", compress(PROGRAM[:50]))
    seal_programs(tmp_path)
    discard_damaged(tmp_path, lambda: NOW + 2 * WRITING_S)
    assert program.exists()
    program.write_bytes(flipped(program.read_bytes()))
    seal_programs(tmp_path)  # a seal is never renewed
    discard_damaged(tmp_path, lambda: NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, other.name + SEAL]


@pytest.mark.parametrize("compress", [zlib.compress, zstandard.ZstdCompressor().compress])
def test_half_a_program_is_not_sealed_and_goes_when_nobody_can_be_writing_it(tmp_path: Path, compress):
    program = kept(tmp_path, "a", compress(PROGRAM)[:-20])
    empty = kept(tmp_path, "b", b"")
    seal_programs(tmp_path)
    discard_damaged(tmp_path, lambda: NOW + WRITING_S)
    assert sorted(tmp_path.iterdir()) == [program, empty]
    discard_damaged(tmp_path, lambda: NOW + WRITING_S + 1)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_seal_costs_a_compilation_and_nothing_else(tmp_path: Path):
    program = kept(tmp_path, "a", zlib.compress(PROGRAM))
    (tmp_path / (program.name + SEAL)).write_bytes(b"\xff\xfe")
    (tmp_path / "notes.txt").write_text("of somebody else", encoding="utf-8")
    discard_damaged(tmp_path, lambda: NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_is_not_there_or_not_ours_to_write_is_done_without(tmp_path: Path):
    seal_programs(tmp_path / "none")
    discard_damaged(tmp_path / "none")
    program = kept(tmp_path, "a", zlib.compress(PROGRAM))
    (tmp_path / f"{program.name}{SEAL}.{os.getpid()}.tmp").mkdir()  # in the way of the draft
    seal_programs(tmp_path)
    assert program.exists()
