"""The tutorials on other data than the sample: their first cell is edited, as a user edits it, and the
others run as they are.

    python tests/test_tutorials.py NOTEBOOK '{"DATASET": "my_episodes"}' [HEADING]

runs one up to a heading, in this process.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from preloaded import python

ROOT = Path(__file__).resolve().parents[1]
SAMPLE, TUTORIALS = ROOT / "data_samples" / "cube_to_bowl", ROOT / "nbs" / "tutorials"
GR1 = ROOT.parent / "shared" / "reference" / "datasets" / "gr1.PickNPlace"
FIRST, LOOK, ROBOT = "00_first_policy", "10_look_at_your_data", "20_a_new_robot"
THROUGH = {FIRST: "", LOOK: "", ROBOT: "## 3. An SO-100"}  # where it leaves the user's data
SHORT = {FIRST: {"STEPS": 2}, LOOK: {}, ROBOT: {}}
CASES = {  # data set -> tutorials that are tried on it
    "v2.0": (FIRST, LOOK),
    "v3.0 without modality.json": (FIRST, ROBOT),
    "broken": (FIRST, LOOK, ROBOT),
}


# ---------------------------------------------------------------- one tutorial, in a process
def edited(source: str, changes: dict) -> str:
    "The first cell with other values; every name must be there."
    for name, value in changes.items():
        line = f"{name} = {value!r}"
        source, n = re.subn(rf"^{name} = .*$", lambda m: line, source, flags=re.M)
        assert n == 1, f"{name} is not set once in the first cell:\n{source}"
    return source


def go_through(book: Path, changes: dict, heading: str = ""):
    "Runs a tutorial up to a heading, and prints what it says; the first error ends the process."
    from execnb.nbio import read_nb
    from notebooks import plain_shell
    os.chdir(book.parent)
    shell, first = plain_shell(), True
    for cell in read_nb(book).cells:
        if heading and heading in cell.source: break
        if cell.cell_type != "code": continue
        outputs = shell.run(edited(cell.source, changes) if first else cell.source)
        first = False
        for o in outputs: print("".join(o.get("text") or o.get("data", {}).get("text/plain", "")))
        if shell.exc: sys.exit(f"{book.name} stopped with {shell.exc!r} in\n{cell.source}")


def start(name: str, cache: Path, heading: str = "", **changes) -> subprocess.CompletedProcess:
    words = TUTORIALS / f"{name}.ipynb", json.dumps(changes), heading
    return python(__file__, *words, GR00T_NB_CACHE=cache, IN_TEST="1")


# ---------------------------------------------------------------- data sets
def without_modality(folder: Path) -> Path:
    "The humanoid in version 3.0; nobody has said what its 44 numbers are."
    from gr00t_nb.conversion.lerobot_v3 import to_v3
    to_v3(GR1, folder, progress=False)
    (folder / "meta/modality.json").unlink()
    return folder


def broken(folder: Path, episodes: int = 8) -> Path:
    "Some of the sample: a table that is none, a video that is gone, one that was cut."
    shutil.copytree(SAMPLE, folder)
    for name in ("episodes.jsonl", "episodes_stats.jsonl"):
        lines = (folder / "meta" / name).read_text().splitlines(keepends=True)
        (folder / "meta" / name).write_text("".join(lines[:episodes]))
    for path in (*folder.glob("data/*/*"), *folder.glob("videos/*/*/*")):
        if int(path.stem.split("_")[1]) >= episodes: path.unlink()
    info = json.loads((folder / "meta/info.json").read_text())
    listed = (folder / "meta/episodes.jsonl").read_text().splitlines()
    rows = sum(json.loads(line)["length"] for line in listed)
    info |= dict(total_episodes=episodes, total_frames=rows, total_videos=2 * episodes)
    (folder / "meta/info.json").write_text(json.dumps(info | dict(splits={"train": f"0:{episodes}"})))
    table, video = "data/chunk-000/episode_{:06d}.parquet", "videos/chunk-000/observation.images.{}"
    (folder / table.format(1)).write_bytes(b"PAR1" * 100)
    (folder / video.format("wrist") / "episode_000003.mp4").unlink()
    cut = folder / video.format("front") / "episode_000005.mp4"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    return folder


def state_of(folder: Path) -> dict:
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def advised(data: Path, cache: Path) -> list[int]:
    "The episodes that the tutorial tells to exclude."
    done = start(LOOK, cache, "## 3. Watch it", DATASET=str(data))
    assert done.returncode == 0, done.stderr
    for kind in ("table_unreadable", "video_missing", "video_truncated"): assert kind in done.stdout
    return json.loads(re.search(r"^EXCLUDE = (.*)$", done.stdout, re.M)[1])


def edits(case: str, folder: Path) -> dict:
    "What is written into the first cell of every tutorial for a data set."
    two = dict(EXCLUDE=[1, 2, 3])  # of five episodes two are enough
    if case == "v2.0": return dict(DATASET=str(GR1), **two)
    if case == "broken":
        data = broken(folder / case)
        return dict(DATASET=str(data), EXCLUDE=advised(data, folder / "cache"))
    return dict(DATASET=str(without_modality(folder / "v3")), **two)


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> dict:
    "Case -> edits, whether its data stayed as they were, tutorial -> finished process."
    folder, found = tmp_path_factory.mktemp("tutorials"), {}
    cases = [c for c in CASES if c == "broken" or GR1.exists()]
    with ThreadPoolExecutor(1) as pool:  # the other core has other tests
        told = dict(zip(cases, pool.map(lambda case: edits(case, folder), cases)))
        before = {case: state_of(Path(e["DATASET"])) for case, e in told.items()}
        for case, e in told.items():
            known = dict(TAG="GR1") if case == "v2.0" else {}
            for name in CASES[case]:
                mine = e | SHORT[name] | (known if name != ROBOT else {})
                job = pool.submit(start, name, folder / "cache", THROUGH[name], **mine)
                found.setdefault(case, {})[name] = job
        done = {case: {name: job.result() for name, job in of.items()} for case, of in found.items()}
    kept = {case: before[case] == state_of(Path(e["DATASET"])) for case, e in told.items()}
    return {case: (told[case], kept[case], done[case]) for case in cases}


# ---------------------------------------------------------------- the tests
@pytest.mark.parametrize("case,name", [(case, name) for case, of in CASES.items() for name in of])
def test_goes_through(results, case, name):
    if case not in results: pytest.skip(f"the data set gr1.PickNPlace is not at {GR1}")
    _, kept, done = results[case]
    assert done[name].returncode == 0, done[name].stderr[-3000:]
    assert kept, "the data set was written to"


def test_what_they_say(results):
    "The episodes that were advised are left out; a robot of 44 numbers is trained, all of them."
    told, _, done = results["broken"]
    assert told["EXCLUDE"] == [1, 3, 5]
    for name in THROUGH: assert "5 episodes (3 left out)" in done[name].stdout
    if not GR1.exists(): pytest.skip(f"the data set gr1.PickNPlace is not at {GR1}")
    _, _, done = results["v3.0 without modality.json"]
    for name in (FIRST, ROBOT): assert "The action is joints (44)" in done[name].stdout
    assert "'joints': (1, 16, 44)" in done[FIRST].stdout


def recordings(folder: Path, episodes: int = 4, rows: int = 30):
    "Somebody's HDF5 files: fourteen joints, what was commanded, one camera, raw pictures."
    h5py = pytest.importorskip("h5py")
    folder.mkdir()
    for i in range(episodes):
        walk = np.random.default_rng(i).normal(size=(rows, 14)).cumsum(0)
        with h5py.File(folder / f"{i}.h5", "w") as f:
            f["action"], f["observations/qpos"] = walk + 0.1, walk
            f["observations/images/top"] = np.full((rows, 48, 64, 3), 30 + i, np.uint8)
    return folder


def test_raw_recordings_of_ones_own(tmp_path):
    "Other cameras and no marks; the files stay as they are."
    folder = recordings(tmp_path / "mine")
    before = state_of(folder)
    mine = dict(DATASET=str(folder), STEPS=2, TASK="stir")
    done = start("65_from_raw_recordings", tmp_path / "cache", **mine)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 episodes, 120 steps" in done.stdout and "row  0 (stir)" in done.stdout
    assert state_of(folder) == before


def test_one_cell_is_edited():
    "Every tutorial begins with it, and it names the data set and what to leave out."
    books = sorted(TUTORIALS.glob("*.ipynb"))
    assert len(books) >= 6
    for book in books:
        cells = json.loads(book.read_text())["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        for name in ("DATASET", "EXCLUDE"):
            edited(code[0], {name: []})
            others = [s for s in code[1:] if re.search(rf"^{name} = ", s, re.M)]
            assert not others, f"{book.name} sets {name} again:\n{others}"


@pytest.mark.parametrize("book", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_nothing_is_deleted_under_run_all(book):
    "What a reader made, and the viewers they look at, go away in the test suite alone."
    cells = json.loads(book.read_text())["cells"]
    code = [line for c in cells if c["cell_type"] == "code" for line in "".join(c["source"]).splitlines()]
    for line in code:
        if re.search(r"\brmtree\(|\.close\(\)|\.unlink\(|TemporaryDirectory", line):
            assert line.startswith("if quick: "), line


if __name__ == "__main__":
    go_through(Path(sys.argv[1]), json.loads(sys.argv[2]), *sys.argv[3:])
