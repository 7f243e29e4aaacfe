"""Situations that users of GR00T kits and LeRobot data sets got into, each a script in `cases/`.

A script makes its input from the sample, asks the kit as a user would, prints one line and exits
with 0 where the kit behaves rightly: `python tests/cases/NAME.py`.
"""
import os
import shutil
from pathlib import Path

import pytest
from preloaded import python

ROOT = Path(__file__).resolve().parents[1]
CASES = sorted((ROOT / "tests/cases").glob("[0-9]*.py"))
NEEDS = {  # what a case cannot do without: whether it is there, and the reason to skip where not
    "01_trimmed_video": (shutil.which("ffmpeg"), "the ffmpeg program is not installed"),
    "17_small_shared_memory": (os.getuid() == 0, "only root may mount a small /dev/shm"),
    "19_user_without_home": (os.getuid() == 0, "only root may become a user without a name"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_case(case, tmp_path):
    there, reason = NEEDS.get(case.stem, (True, ""))
    if not there: pytest.skip(reason)
    done = python(case, timeout=900, GR00T_NB_CACHE=tmp_path / "cache", TMPDIR=tmp_path)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
