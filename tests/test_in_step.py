"""The package, the script, the README and the notebooks are in step, and the notebooks are clean: what
is committed is what the notebooks say."""
import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    "A copy of what export reads, exported afresh."
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("nbs", "gr00t_nb", "scripts", "docs"):
        shutil.copytree(
            ROOT / name,
            copy / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    for name in ("settings.ini", "pyproject.toml", "README.md", "export.py"):
        shutil.copy(ROOT / name, copy / name)
    if (ROOT / "README_files").exists():
        shutil.copytree(ROOT / "README_files", copy / "README_files")
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    subprocess.run(
        [sys.executable, copy / "export.py", copy],
        check=True,
        cwd=copy,
        env=env,
        capture_output=True,
    )
    return copy


def files(folder: Path) -> set[str]:
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts
    }


@pytest.mark.parametrize("name", ["gr00t_nb", "scripts", "README_files"])
def test_generated_folders(exported, name):
    ours, fresh = ROOT / name, exported / name
    if not ours.exists() and not fresh.exists(): pytest.skip(f"there is no {name}/")
    assert files(ours) == files(fresh)
    differ = [f for f in sorted(files(ours)) if not filecmp.cmp(ours / f, fresh / f, shallow=False)]
    assert not differ, f"not in step with the notebooks: {differ}; run make export"


def test_readme(exported):
    assert (ROOT / "README.md").read_text() == (
        exported / "README.md"
    ).read_text(), "run make export"


def test_notebooks_are_clean(exported):
    before = {
        p: (exported / "nbs" / p).read_bytes()
        for p in files(exported / "nbs")
        if p.endswith(".ipynb")
    }
    subprocess.run(
        [Path(sys.executable).parent / "nbdev_clean"], check=True, cwd=exported, capture_output=True
    )
    dirty = [p for p, data in before.items() if (exported / "nbs" / p).read_bytes() != data]
    assert not dirty, f"not clean: {dirty}; run nbdev_clean"


def test_notebooks_are_small_and_executed():
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts: continue
        assert path.stat().st_size <= 600 * 1024, f"{path} is larger than 600 KB"
        nb = json.loads(path.read_text())
        assert "widgets" not in nb["metadata"], f"{path} holds widget state"
        errors = [
            o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"
        ]
        assert not errors, f"{path} was committed with an error"
        live = [
            o
            for c in nb["cells"]
            for o in c.get("outputs", [])
            if any(k.startswith("application/vnd.jupyter.widget") for k in o.get("data", {}))
        ]
        assert not live, (
            f"{path} was committed with a live widget, which is an error message without its"
            " kernel; run make export"
        )
        assert (
            any(c.get("outputs") for c in nb["cells"]) or path.stem == "90_script"
        ), f"{path} was committed without outputs"


VIEW = "application/vnd.jupyter.widget-view+json"


def output(**data) -> dict:
    return {"data": data, "execution_count": None, "metadata": {}, "output_type": "execute_result"}


def notebook(*outputs) -> dict:
    "With one cell, which shows `outputs`."
    cell = {"cell_type": "code", "execution_count": None, "id": "0a", "metadata": {}}
    cell |= {"source": ["viewer"], "outputs": list(outputs)}
    kept = {"metadata": {"widgets": {VIEW: {}}}, "nbformat": 4, "nbformat_minor": 5}
    return {"cells": [cell]} | kept


def test_live_widgets_are_taken_out(tmp_path):
    "What stays of a viewer's output is its picture, of a progress bar nothing; all else is as before."
    sys.path.insert(0, str(ROOT))
    from export import strip_widgets
    picture = {"image/png": "aGk=", "text/plain": ["viewer"]}
    bar = ["open loop:   0%|          | 0/4 [00:00<?, ?episode/s]"]
    live = output(**{VIEW: {"model_id": "1"}}, **picture)
    nb = notebook(live, output(**{VIEW: {"model_id": "2"}, "text/plain": bar}))
    (tmp_path / "nbs").mkdir()
    file = tmp_path / "nbs" / "a.ipynb"
    file.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    strip_widgets(tmp_path)
    stripped = json.loads(file.read_text())
    assert stripped["cells"][0]["outputs"] == [output(**picture)]
    assert "widgets" not in stripped["metadata"] and stripped["cells"][0]["source"] == ["viewer"]
    before = file.read_bytes()
    strip_widgets(tmp_path)
    assert file.read_bytes() == before
