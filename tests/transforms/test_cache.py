from pathlib import Path

import pytest

from transforms.cache import cache_folder


def test_the_cache_folder_is_the_variables_or_in_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SWITCHGEAR_CACHE_DIR", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "switchgear"
    monkeypatch.setenv("SWITCHGEAR_CACHE_DIR", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.setenv("SWITCHGEAR_CACHE_DIR", "~/mine")
    assert cache_folder() == tmp_path / "mine"
