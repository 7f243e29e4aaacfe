"The command that proposes what a robot is: its file trains, as it is, and nothing else is written."
import json
import shutil
from subprocess import CompletedProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from preloaded import python

from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.prepare import prepare_data

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data_samples" / "cube_to_bowl"
V3 = ROOT.parent / "shared/reference/datasets/gr1_lerobot_v3"
OPENPI = {  # columns as openpi's converters call them
    "observation.state": "state",
    "action": "actions",
    "observation.images.front": "image",
    "observation.images.wrist": "wrist_image",
}


def as_openpi(folder: Path) -> Path:
    "The sample with openpi's column names, and without a modality.json."
    shutil.copytree(SAMPLE, folder)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"] = {OPENPI.get(k, k): v for k, v in info["features"].items()}
    (folder / "meta/info.json").write_text(json.dumps(info))
    for path in folder.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([OPENPI.get(c, c) for c in table.column_names]), path)
    for old, new in OPENPI.items():
        if (place := folder / "videos/chunk-000" / old).exists(): place.rename(place.parent / new)
    for name in ("modality.json", "episodes_stats.jsonl"): (folder / "meta" / name).unlink()
    return folder


def propose(*words) -> CompletedProcess: return python("-m", "gr00t_nb.data.proposal", *words)


def state_of(folder: Path) -> dict:
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


@pytest.fixture(params=["sample", "v3.0 without modality.json", "openpi"])
def dataset(request, tmp_path) -> Path:
    if request.param == "sample": return SAMPLE
    if request.param == "openpi": return as_openpi(tmp_path / "openpi")
    if not V3.exists(): pytest.skip(f"the data set gr1_lerobot_v3 is not at {V3}")
    return V3


def test_its_file_works_as_it_is(dataset, tmp_path):
    "Printed or written it is the same; training takes it with --modality-config-path."
    before, file = state_of(dataset), tmp_path / "robot.py"
    printed, written = propose(dataset), propose(dataset, "--output", file)
    assert printed.returncode == written.returncode == 0, printed.stderr + written.stderr
    assert printed.stdout == file.read_text()
    assert load_modality_config(file) == ["new_embodiment"]
    config = MODALITY_CONFIGS.pop("new_embodiment")
    assert config["video"].modality_keys and config["state"].modality_keys
    assert config["action"].action_configs and config["language"].modality_keys
    run = FinetuneConfig("tiny", str(dataset), "NEW_EMBODIMENT", modality_config_path=str(file))
    run.check_data = False  # what is missing from a data set that nobody described is another matter
    assert prepare_data(run).root.modality_config == config
    assert state_of(dataset) == before


def test_nothing_is_replaced_or_put_into_the_data_set(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("# my own\n")
    done = propose(SAMPLE, "--output", mine)
    assert done.returncode == 2 and "exists already" in done.stderr and "--overwrite" in done.stderr
    assert mine.read_text() == "# my own\n"
    assert propose(SAMPLE, "--output", mine, "--overwrite").returncode == 0
    assert "register_modality_config" in mine.read_text()
    (tmp_path / "link").symlink_to(SAMPLE)
    for inside in (SAMPLE / "meta/robot.py", tmp_path / "link/robot.py"):
        done = propose(SAMPLE, "--output", inside)
        assert done.returncode == 2 and "never written to" in done.stderr
        assert not inside.exists()


def test_too_many_numbers_are_left_out_as_advised():
    done = propose(SAMPLE, "--max-action-dim", "6")
    assert done.returncode == 2 and "(--without gripper)" in done.stderr, done.stderr
    done = propose(SAMPLE, "--max-action-dim", "6", "--without", "gripper")
    assert done.returncode == 0 and "gripper" not in done.stdout
