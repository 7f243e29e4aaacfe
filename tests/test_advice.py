"""A sentence that says what to do is right: what it names exists, and doing it works."""
import ast
import importlib.util
import inspect
import json
import re
import shutil
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import ROOT, RUN, SAMPLE

from gr00t_nb.checkup.checkup import CheckupConfig, check_dataset
from gr00t_nb.conversion import aloha, lerobot_v2, lerobot_v3
from gr00t_nb.data import proposal as proposing
from gr00t_nb.data.language import read_instruction
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.modality import save_modality
from gr00t_nb.data.proposal import ProposalOptions, propose_config
from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.errors import InputError
from gr00t_nb.evaluation import diagnostics, open_loop
from gr00t_nb.processing.statistics import dataset_statistics, relative_statistics
from gr00t_nb.checkpoints import export
from gr00t_nb.checkpoints.widen import WidenConfig
from gr00t_nb.rollout.closed_loop import ServedConfig
from gr00t_nb.rollout.evaluate import ClosedLoopConfig
from gr00t_nb.rollout.run import RunConfig
from gr00t_nb.serving.server import ServerConfig
from gr00t_nb.settings.checks import check_config
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.settings.official_flags import OFFICIAL_FLAGS
from gr00t_nb.training.finetune import finetune

FEW = [*range(3, 40)]  # episodes of the sample that are left out
SHORT = replace(RUN, max_steps=1, exclude_episodes=FEW)


# --------------------------------------------------------------------- what is named exists
@cache
def texts() -> list[tuple[str, str]]:  # file, text
    "Everything that the package says; the pieces of an f-string in one."
    found = []
    for file in sorted((ROOT / "gr00t_nb").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(v, "value", "{}") for v in node.values)
                found.append((file.name, "".join(p if isinstance(p, str) else "{}" for p in parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((file.name, node.value))
    return found


PLANNING = {"plan", "gpu", "pace"}  # of scripts/finetune.py, and no fields of a run
FOREIGN = {"shm-size", "ipc", "index-url", "upgrade", "repo-type", "revision"}  # of docker, pip, hf
FOREIGN |= {"no-install-recommends"}  # of apt
FOREIGN |= {"init-task"}  # what FluxVLA calls --task of a conversion


def flags() -> set[str]:
    configs = (FinetuneConfig, CheckupConfig, ProposalOptions)
    configs += open_loop.OpenLoopConfig, diagnostics.DiagnosticsConfig
    configs += ServerConfig, ClosedLoopConfig, ServedConfig, RunConfig, WidenConfig
    names = {f.name for c in configs for f in fields(c)} | {"help", *OFFICIAL_FLAGS, *PLANNING}
    exports = export.export_full, export.export_changed, export.apply_changed, export.push_to_hub
    for f in (aloha.from_hdf5, lerobot_v2.to_v2, lerobot_v3.to_v3, *exports):
        names |= set(inspect.signature(f).parameters)
    return {n.replace("_", "-") for n in names}


def test_flags_that_are_named_exist():
    known, seen = flags() | FOREIGN, set()
    for file, text in texts():
        for flag in re.findall(r"(?<![\w(-])--([a-z]+(?:-[a-z]+)*)(?![\w-])", text):
            if flag.startswith("jp-"): continue  # a colour of JupyterLab
            seen.add(flag)
            assert flag in known or flag.removeprefix("no-") in known or flag == "no-name", (file, text)
    assert {"modality-path", "no-check-data", "base-model-path"} <= seen  # the search finds them


def test_modules_that_are_named_exist():
    named = {m for _, text in texts() for m in re.findall(r"python -m (gr00t_nb[.\w]+)", text)}
    assert "gr00t_nb.checkup.checkup" in named
    for module in named: assert importlib.util.find_spec(module), module


# --------------------------------------------------------------------- doing it works
@pytest.fixture
def data(tmp_path) -> Path:
    "A copy of the sample that may be damaged."
    shutil.copytree(SAMPLE, tmp_path / "data")
    return tmp_path / "data"


def test_a_group_is_split_as_advised(tmp_path):
    whole = dict(state={"all": dict(start=0, end=7)}, action={"all": dict(start=0, end=7)})
    own = json.loads((SAMPLE / "meta/modality.json").read_text())
    ds = LeRobotDataset(SAMPLE, own | whole)
    with pytest.raises(InputError) as refused: propose_config(ds, max_action_dim=6)
    assert "split the group" in str(refused.value) and "--modality-path" in str(refused.value)
    file = tmp_path / "modality.json"
    save_modality(ds, file)
    given = json.loads(file.read_text())
    for kind in ("state", "action"):
        given[kind] = {"arm": dict(start=0, end=6), "hand": dict(start=6, end=7)}
    file.write_text(json.dumps(given))
    proposal = propose_config(LeRobotDataset(SAMPLE, file), ["hand"], max_action_dim=6)
    assert proposal.config["action"].modality_keys == ["arm"]
    with pytest.raises(InputError, match=r"without=\['hand'\]"):
        propose_config(LeRobotDataset(SAMPLE, file), max_action_dim=6)


def test_a_data_set_without_instructions_gets_one_as_advised(data, tmp_path, capsys):
    "By a modality.json that lies elsewhere, from Python and from the command line."
    modality, episodes = data / "meta/modality.json", data / "meta/episodes.jsonl"
    silent = json.loads(modality.read_text()) | dict(annotation={})
    modality.write_text(json.dumps(silent))
    lines = [json.loads(line) | dict(tasks=[]) for line in episodes.read_text().splitlines()]
    episodes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit): proposing.main([str(data)])
    said = capsys.readouterr().err
    assert "has no instruction" in said and "--modality-path" in said
    advised = json.loads(re.search(r'"annotation": (\{.*?\}\})', said)[1])
    given, robot = tmp_path / "mine.json", tmp_path / "robot.py"
    given.write_text(json.dumps(silent | dict(annotation=advised)))
    proposing.main([str(data), "--modality-path", str(given), "--output", str(robot)])
    assert "annotation.human.task_description" in robot.read_text()
    ds = LeRobotDataset(data, given)
    key = propose_config(ds).config["language"].modality_keys[0]
    assert read_instruction(ds, 0, 0, key) == "what the robot was asked to do"


def test_a_wrong_slice_is_fixed_without_writing_to_the_data(data, tmp_path):
    file = data / "meta/modality.json"
    right, wrong = file.read_text(), json.loads(file.read_text())
    wrong["state"]["gripper"]["end"] = 9
    file.write_text(json.dumps(wrong))
    with pytest.raises(InputError) as refused: LeRobotDataset(data).state(0)
    assert "ends at 9" in str(refused.value) and f"change a copy of {file}" in str(refused.value)
    (tmp_path / "mine.json").write_text(right)
    assert LeRobotDataset(data, tmp_path / "mine.json").state(0)["gripper"].shape[1] == 1


def test_without_a_modality_json(data, tmp_path):
    "The proposal, saved where one likes, is given by flag; the run keeps it, and goes on with no other."
    (data / "meta/modality.json").unlink()
    with pytest.warns(UserWarning, match="makes it a file that you can change"):
        ds = LeRobotDataset(data)
    save_modality(ds, tmp_path / "modality.json")
    problems = check_dataset(data, progress=False, workers=1).of("error")
    assert "--modality-path" in next(str(p) for p in problems if p.kind == "modality_missing")
    given = dict(modality=tmp_path / "modality.json", progress=False, workers=1)
    assert not check_dataset(data, **given).of("error")
    more = dict(modality_path=str(tmp_path / "modality.json"), output_dir=str(tmp_path / "out"))
    config = replace(SHORT, dataset_path=str(data), **more)
    finetune(config)
    ask = ["--dataset-path", str(data), "--traj-ids", "0", "--steps", "8"]
    (tmp_path / "modality.json").rename(tmp_path / "moved.json")
    open_loop.main(["--model-path", str(tmp_path / "out"), *ask])
    other = json.loads((tmp_path / "moved.json").read_text())
    other["state"]["gripper"] = dict(start=5, end=6)
    (tmp_path / "modality.json").write_text(json.dumps(other))
    with pytest.raises(InputError) as refused: finetune(config)
    as_advised = str(refused.value).partition("--modality-path ")[2].split()[0]
    finetune(replace(config, modality_path=as_advised))
    assert not (data / "meta/modality.json").exists()


def test_an_unfinished_run_names_its_newest_checkpoint(tmp_path, capsys):
    finetune(replace(SHORT, output_dir=str(tmp_path / "run")))
    whole = tmp_path / "run/checkpoint-1"
    for step in (9, 10): shutil.copytree(whole, tmp_path / f"unfinished/checkpoint-{step}")
    ask = ["--dataset-path", str(SAMPLE), "--traj-ids", "0", "--steps", "8"]
    with pytest.raises(SystemExit): open_loop.main(["--model-path", str(tmp_path / "unfinished"), *ask])
    named = capsys.readouterr().err.strip().rpartition("newest checkpoint, ")[2].rstrip(".")
    assert named == str(tmp_path / "unfinished/checkpoint-10")
    open_loop.main(["--model-path", named, *ask])


def test_a_broken_episode_is_left_out_as_advised(data, tmp_path, capsys):
    "In training, along a recording, and in a conversion."
    video = "videos/chunk-000/observation.images.front/episode_000000.mp4"
    (data / video).write_bytes(b"no video")
    config = replace(SHORT, dataset_path=str(data), output_dir=str(tmp_path / "out"))
    config = replace(config, check_data=True, exclude_episodes=[*range(2, 40)])
    with pytest.raises(InputError) as refused: finetune(config)
    without = re.search(r"train without the episode: --exclude-episodes ([\d ]+),", str(refused.value))
    assert 0 in (numbers := [int(n) for n in without[1].split()])
    finetune(replace(config, exclude_episodes=numbers))
    ask = ["--model-path", str(tmp_path / "out"), "--dataset-path", str(data), "--steps", "8"]
    with pytest.raises(SystemExit): open_loop.main([*ask, "--traj-ids", "0"])
    assert "exclude_episodes" in capsys.readouterr().err
    open_loop.main([*ask, "--traj-ids", "0", "--exclude-episodes", "0"])
    left = lerobot_v3.to_v3(data, tmp_path / "v3", progress=False, exclude_episodes=[*range(2, 40), 0])
    assert len(left) == 1


@pytest.mark.parametrize("size", [3, 1, 7])
def test_a_batch_size_that_processes_do_not_divide(size):
    config = replace(SHORT, global_batch_size=size)
    with pytest.raises(InputError, match="such as") as refused: check_config(config, 2)
    near = int(re.search(r"such as (\d+)", str(refused.value))[1])
    check_config(replace(config, global_batch_size=near), 2)


def test_a_horizon_that_is_too_long(tmp_path, capsys):
    finetune(replace(SHORT, output_dir=str(tmp_path)))
    ask = ["--model-path", str(tmp_path), "--dataset-path", str(SAMPLE), "--traj-ids", "0", "--steps", "8"]
    with pytest.raises(SystemExit): open_loop.main([*ask, "--action-horizon", "99"])
    most = re.search(r"choose 1 to (\d+)", capsys.readouterr().err)[1]
    open_loop.main([*ask, "--action-horizon", most])


@pytest.mark.parametrize("stale", ["stats.json", "relative_stats.json"])
def test_stale_statistics_are_told_and_left_be_as_advised(data, tmp_path, stale):
    "Angles became radians, the file stayed behind."
    ds = LeRobotDataset(data)
    finetune(replace(SHORT, exclude_episodes=None, output_dir=str(tmp_path / "first")))
    true = json.loads((tmp_path / "first/experiment_cfg/dataset_statistics.json").read_text())
    robot = MODALITY_CONFIGS["new_embodiment"]
    made = dataset_statistics(ds) if stale == "stats.json" else relative_statistics(ds, robot)
    assert made
    scaled = {c: {k: scale(v) for k, v in e.items()} for c, e in made.items()}
    (data / "meta" / stale).write_text(json.dumps(scaled))
    config = replace(SHORT, dataset_path=str(data), exclude_episodes=None)
    with pytest.warns(UserWarning, match=f"{stale} does not fit the data(.|\n)*--no-shipped-statistics"):
        finetune(replace(config, output_dir=str(tmp_path / "warned")))
    finetune(replace(config, shipped_statistics=False, output_dir=str(tmp_path / "advised")))
    used = {n: tmp_path / n / "experiment_cfg/dataset_statistics.json" for n in ("warned", "advised")}
    assert json.loads(used["warned"].read_text()) != true
    assert json.loads(used["advised"].read_text()) == true


def scale(x): return [scale(v) for v in x] if isinstance(x, list) else 57.29578 * x


def test_a_robot_without_a_configuration_gets_one_as_advised(tmp_path, monkeypatch):
    "By training and by the check-up: the command that is named makes the file that is missing."
    monkeypatch.chdir(tmp_path)
    MODALITY_CONFIGS.pop("new_embodiment", None)
    bare = replace(SHORT, modality_config_path=None, output_dir=str(tmp_path / "out"))
    with pytest.raises(InputError) as refused: finetune(bare)
    with pytest.raises(InputError) as checked: check_dataset(SAMPLE, "NEW_EMBODIMENT", progress=False)
    command = re.search(r"\(python -m gr00t_nb.data.proposal (.*?)\)", str(refused.value))[1]
    assert command == f"{SAMPLE} --output my_robot.py" and command in str(checked.value)
    proposing.main(command.split())
    finetune(replace(bare, modality_config_path=str(tmp_path / "my_robot.py")))


def test_a_range_of_nearly_nothing_gets_a_floor_as_advised(data, tmp_path):
    "In the statistics of the checkpoint, in the record, and when the run goes on."
    for file in sorted((data / "data").rglob("*.parquet")):
        t = pq.read_table(file)
        x = np.stack(t["observation.state"].to_numpy())
        x[:, 2] = 0.3 + 1e-6 * np.random.default_rng(len(x)).standard_normal(len(x))
        column = pa.array(list(x.astype(np.float32)), pa.list_(pa.float32()))
        t = t.set_column(t.column_names.index("observation.state"), "observation.state", column)
        pq.write_table(t, file)
    for name in ("stats.json", "episodes_stats.jsonl"): (data / "meta" / name).unlink(missing_ok=True)
    warned = [p for p in check_dataset(data, progress=False).problems if p.kind == "near_constant"]
    floor = float(re.search(r"--range-floor ([\d.]+)", warned[0].fix)[1])
    config = replace(SHORT, dataset_path=str(data), output_dir=str(tmp_path / "out"), range_floor=floor)
    finetune(config)
    kept = json.loads((tmp_path / "out/statistics.json").read_text())["new_embodiment"]["state"]["single_arm"]
    for low, high in (("min", "max"), ("q01", "q99")):
        assert np.isclose(kept[high][2] - kept[low][2], floor, rtol=1e-4)
    assert np.isclose(kept["std"][2], floor / 12**0.5)
    record = json.loads((tmp_path / "out/experiment_cfg/finetune.json").read_text())
    assert record["config"]["range_floor"] == floor
    with pytest.raises(InputError, match="range_floor was 0.01, now None"):
        finetune(replace(config, range_floor=None, max_steps=2))
