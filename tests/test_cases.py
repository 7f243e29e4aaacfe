"""Situations that users of GR00T kits and LeRobot data sets got into, each a script in `cases/`.

A script makes its input from the sample, asks the kit as a user would, prints one line and exits
with 0 where the kit behaves rightly: `python tests/cases/NAME.py`. Here they run in the process of
the tests, and the commands of the kit that they start as forks of one that has imported it.
"""
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from preloaded import python

ROOT = Path(__file__).resolve().parents[1]
CASES = sorted((ROOT / "tests/cases").glob("[0-9]*.py"))
NEEDS = {  # what a case cannot do without: whether it is there, and the reason to skip where not
    "01_trimmed_video": (shutil.which("ffmpeg"), "the ffmpeg program is not installed"),
    "19_user_without_home": (os.getuid() == 0, "only root may become a user without a name"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path: return tmp_path_factory.mktemp("cache")


@pytest.fixture
def as_a_script(cache, tmp_path, monkeypatch):
    "What a case finds in a process of its own."
    start = subprocess.run
    def run(command, *, env=None, timeout=None, **how):
        if command[0] != sys.executable: return start(command, env=env, timeout=timeout, **how)
        return python(*command[1:], timeout=timeout, **env)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("GR00T_NB_CACHE", str(cache))
    monkeypatch.delitem(sys.modules, "case", raising=False)
    monkeypatch.syspath_prepend(ROOT / "tests/cases")
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_case(case, as_a_script, capsys):
    there, reason = NEEDS.get(case.stem, (True, ""))
    if not there: pytest.skip(reason)
    with pytest.raises(SystemExit) as ended: runpy.run_path(str(case), run_name=case.stem)
    assert ended.value.code == 0, capsys.readouterr().out[-1000:]
