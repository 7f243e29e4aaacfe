"The sample data set: its script repeats itself, its expert succeeds, and what is committed is whole."
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gr00t_nb.simulators.arm_scene import BOWL_HEIGHT, BOWL_RADIUS, CUBE_COLOURS
from gr00t_nb.simulators.cube_to_bowl import CubeToBowl
from gr00t_nb.simulators.expert import record_episode, record_success

SAMPLES = Path(__file__).parents[1] / "data_samples"
SCRIPT, SAMPLE = SAMPLES / "make_cube_to_bowl.py", SAMPLES / "cube_to_bowl"

needs_mujoco = "mujoco (of the dev requirements) is not installed"
if importlib.util.find_spec("mujoco") is None: pytest.skip(needs_mujoco, allow_module_level=True)


def make(out, *options):
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--no-render", "--episodes", "2"]
    return subprocess.run([*command, *options], capture_output=True, text=True)


def lines(name):
    return [json.loads(line) for line in (SAMPLE / "meta" / name).read_text().splitlines()]


def column(table, name):
    return np.stack(table[name].to_numpy())


def rows(episode, columns=None):
    return pq.read_table(SAMPLE / f"data/chunk-000/episode_{episode:06d}.parquet", columns=columns)


@pytest.fixture(scope="module")
def info():
    return json.loads((SAMPLE / "meta/info.json").read_text())


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    outs = [tmp_path_factory.mktemp("sample") / "made" for _ in range(2)]
    for out in outs:
        done = make(out)
        assert done.returncode == 0, done.stderr
    return outs


def test_one_seed_one_data_set(twice):
    files = [[p for p in out.rglob("*") if p.is_file()] for out in twice]
    a, b = ({p.relative_to(o): p.read_bytes() for p in ps} for o, ps in zip(twice, files))
    assert len([p for p in a if p.suffix == ".parquet"]) == 2
    assert a == b


def test_another_seed_another_data_set(twice, tmp_path):
    assert make(tmp_path / "made", "--seed", "1").returncode == 0
    name = "data/chunk-000/episode_000000.parquet"
    assert (tmp_path / "made" / name).read_bytes() != (twice[0] / name).read_bytes()


def test_existing_folder_is_left_alone_unless_told(twice):
    before = sorted(p.stat().st_mtime_ns for p in twice[1].rglob("*"))
    refused = make(twice[1])
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert sorted(p.stat().st_mtime_ns for p in twice[1].rglob("*")) == before
    assert make(twice[1], "--overwrite").returncode == 0
    assert sorted(p.name for p in twice[1].parent.iterdir()) == ["made"]  # no half-made folder stays


def test_no_render_leaves_cameras_out(twice):
    info = json.loads((twice[0] / "meta/info.json").read_text())
    assert info["total_videos"] == 0 and info["video_path"] is None
    assert not [name for name, f in info["features"].items() if f["dtype"] == "video"]
    assert json.loads((twice[0] / "meta/modality.json").read_text())["video"] == {}


@pytest.fixture(scope="module")
def sim():
    return CubeToBowl(render=False)


@pytest.mark.parametrize("task", [0, 1])
def test_the_named_cube_ends_in_the_bowl(sim, task):
    sim.reset([0, task, 0])
    assert not any(sim.in_bowl(colour) for colour in CUBE_COLOURS)
    record_success(sim, 0, task, cameras=())
    assert sim.in_bowl(CUBE_COLOURS[task]) and not sim.in_bowl(CUBE_COLOURS[1 - task])
    body, bowl = sim.data.body(CUBE_COLOURS[task]).xpos, sim.model.body("bowl").pos
    assert np.hypot(*(body - bowl)[:2]) < BOWL_RADIUS and 0 < body[2] < BOWL_HEIGHT


def test_a_still_arm_does_not_succeed(sim):
    sim.reset(0)
    still = sim.state()
    for _ in range(20): sim.step(still)
    assert np.abs(sim.state() - still).max() < 0.02  # servos hold the pose
    assert not any(sim.in_bowl(colour) for colour in CUBE_COLOURS)


def test_stored_actions_replayed_in_the_simulator_succeed(sim):
    "The committed numbers are those of the simulator: what a policy would have to output."
    seeds = ([0, 0, attempt] for attempt in range(100))  # in the script's own order
    seed = next(seed for seed in seeds if record_episode(sim, 0, seed, cameras=())[1])
    sim.reset(seed)
    for action in column(rows(0), "action"): sim.step(action)
    assert sim.succeeded(0)


def test_totals_agree(info):
    episodes, tasks = lines("episodes.jsonl"), lines("tasks.jsonl")
    assert info["codebase_version"] == "v2.1" and info["fps"] == 20
    tables, stats = list(SAMPLE.glob("data/*/*.parquet")), lines("episodes_stats.jsonl")
    assert info["total_episodes"] == len(episodes) == len(stats) == len(tables) >= 30
    assert info["total_frames"] == sum(e["length"] for e in episodes)
    assert info["total_videos"] == len(list(SAMPLE.glob("videos/*/*/*.mp4"))) == 2 * len(episodes)
    assert info["total_tasks"] == len(tasks) >= 2
    assert all(80 <= e["length"] <= 125 for e in episodes)
    used = [e["tasks"][0] for e in episodes]
    assert {t["task"] for t in tasks} == set(used) and used.count(used[0]) * 2 == len(used)


def test_rows_agree_with_the_listing(info):
    tasks, start = {t["task_index"]: t["task"] for t in lines("tasks.jsonl")}, 0
    expected = [name for name, f in info["features"].items() if f["dtype"] != "video"]
    for episode in lines("episodes.jsonl"):
        table, n = rows(episode["episode_index"]), episode["length"]
        assert table.column_names == expected and table.num_rows == n
        assert (table["index"].to_numpy() == start + np.arange(n)).all()
        assert (table["frame_index"].to_numpy() == np.arange(n)).all()
        assert np.allclose(table["timestamp"].to_numpy(), np.arange(n) / 20)
        assert [tasks[i] for i in table["task_index"].unique().to_pylist()] == episode["tasks"]
        for name in ("observation.state", "action"):
            x = column(table, name)
            assert x.shape == (n, 7) and x.dtype == np.float32 and np.isfinite(x).all()
            assert x[:, 6].min() >= 0 and x[:, 6].max() <= 1
        start += n


def test_statistics_of_an_episode_are_those_of_its_rows():
    for line in lines("episodes_stats.jsonl")[::9]:
        x = column(rows(line["episode_index"]), "action").astype(np.float64)
        stats = line["stats"]["action"]
        for name in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(stats[name], getattr(x, name)(0), rtol=1e-6, atol=1e-7)
        assert stats["count"] == [len(x)]
        for camera in ("front", "wrist"):
            image = line["stats"][f"observation.images.{camera}"]
            assert np.shape(image["mean"]) == (3, 1, 1)
            assert 0 <= np.min(image["min"]) < np.max(image["max"]) <= 1


@pytest.mark.parametrize("name", ["observation.state", "action", "timestamp"])
def test_statistics_of_the_whole_are_by_the_official_formula(name):
    "Of all rows at once, in float32, every step weighing the same; NVIDIA's evaluation asserts the file."
    stats = json.loads((SAMPLE / "meta/stats.json").read_text())
    assert list(stats) == ["observation.state", "action", "timestamp"]
    files = sorted(SAMPLE.glob("data/*/*.parquet"))
    x = np.concatenate([column(pq.read_table(f), name) for f in files]).reshape(4174, -1)
    expected = {k: getattr(np, k)(x, axis=0) for k in ("mean", "std", "min", "max")}
    expected |= {k: np.quantile(x, q, axis=0) for k, q in (("q01", 0.01), ("q99", 0.99))}
    assert stats[name].keys() == expected.keys()
    for k, value in expected.items():
        np.testing.assert_allclose(stats[name][k], value.tolist(), rtol=2e-6, atol=1e-7)


def test_the_check_up_finds_the_statistics_sound():
    from gr00t_nb.checkup.checkup import check_dataset
    report = check_dataset(SAMPLE, progress=False)
    assert not [p for p in report.problems if p.file and "stats" in p.file]


def test_targets_lead_the_state():
    "The servos follow: the state a little later resembles the target now more than the state now does."
    for episode in range(4):
        table = rows(episode)
        state, action = (column(table, k)[:, :6] for k in ("observation.state", "action"))
        lag = [np.abs(action[:-8] - state[k:len(state) - 8 + k]).mean() for k in range(8)]
        assert 1 <= int(np.argmin(lag)) <= 6, lag


@pytest.mark.parametrize("episode", [0, 1, -1])
def test_videos_have_a_frame_for_every_row(info, episode):
    from torchcodec.decoders import VideoDecoder
    listing = lines("episodes.jsonl")[episode]
    place = dict(episode_chunk=0, episode_index=listing["episode_index"])
    for name in (n for n, f in info["features"].items() if f["dtype"] == "video"):
        video = VideoDecoder(str(SAMPLE / info["video_path"].format(video_key=name, **place)))
        described, held = info["features"][name]["info"], video.metadata
        assert len(video) == listing["length"] and held.average_fps == 20
        size = described["video.height"], described["video.width"]
        assert (held.codec, held.height, held.width) == ("h264", *size)
        assert tuple(video[len(video) - 1].shape) == (3, 240, 320)


def test_small_enough_for_git():
    assert sum(p.stat().st_size for p in SAMPLE.rglob("*") if p.is_file()) < 12e6


def registered() -> dict:
    "What the configuration file registers here."
    from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
    assert load_modality_config(SAMPLES / "cube_to_bowl_config.py") == ["new_embodiment"]
    return MODALITY_CONFIGS.pop("new_embodiment")


def test_configuration_names_what_the_data_set_has():
    config = registered()
    modality = json.loads((SAMPLE / "meta/modality.json").read_text())
    for kind in ("video", "state", "action"):
        assert config[kind].modality_keys == list(modality[kind])
    assert config["language"].modality_keys == [
        "annotation." + key for key in modality["annotation"]
    ]
    assert config["action"].delta_indices == list(range(16))


OFFICIAL = {
    "gr00t/data/embodiment_tags.py": """
from enum import Enum
class EmbodimentTag(Enum):
    NEW_EMBODIMENT = "new_embodiment"
""",
    "gr00t/data/types.py": """
from dataclasses import dataclass
from enum import Enum
ActionRepresentation = Enum("ActionRepresentation", "RELATIVE DELTA ABSOLUTE")
ActionType = Enum("ActionType", "EEF NON_EEF")
ActionFormat = Enum("ActionFormat", "DEFAULT XYZ_ROT6D XYZ_ROTVEC")
@dataclass
class ActionConfig:
    rep: ActionRepresentation
    type: ActionType
    format: ActionFormat
    state_key: str | None = None
    def to_json(self):
        return {k: v.name if isinstance(v, Enum) else v for k, v in vars(self).items()}
@dataclass
class ModalityConfig:
    delta_indices: list
    modality_keys: list
    sin_cos_embedding_keys: list | None = None
    mean_std_embedding_keys: list | None = None
    action_configs: list | None = None
    def __post_init__(self):
        assert type(self.delta_indices) is list and type(self.modality_keys) is list
    def to_json(self):
        configs = self.action_configs
        return vars(self) | {"action_configs": configs and [a.to_json() for a in configs]}
""",
    "gr00t/configs/data/embodiment_configs.py": """
from gr00t.data.embodiment_tags import EmbodimentTag
MODALITY_CONFIGS = {}
def register_modality_config(config, embodiment_tag=EmbodimentTag.NEW_EMBODIMENT):
    assert embodiment_tag.value not in MODALITY_CONFIGS
    MODALITY_CONFIGS[embodiment_tag.value] = config
""",
}  # the names that NVIDIA's package has, as strict as there
LAUNCHER = """
import importlib, json, sys
from pathlib import Path
file = Path(sys.argv[1])
sys.path.append(str(file.parent))
importlib.import_module(file.stem)
from gr00t.configs.data.embodiment_configs import MODALITY_CONFIGS
print(json.dumps({m: c.to_json() for m, c in MODALITY_CONFIGS["new_embodiment"].items()}))
assert "gr00t_nb" not in sys.modules
"""  # how NVIDIA's launcher reads a configuration file


@pytest.fixture
def official(tmp_path):
    "A package of NVIDIA's names, and what reads a configuration file with it."
    for name, source in OFFICIAL.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in file.parents:
            if folder != tmp_path and tmp_path in folder.parents: (folder / "__init__.py").touch()
        file.write_text(source)

    def read(file) -> dict:
        command = [sys.executable, "-c", LAUNCHER, str(file)]
        env = {"PYTHONPATH": str(tmp_path), "PATH": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


def test_one_configuration_file_serves_both_code_bases(official):
    ours = {m: c.to_json() for m, c in registered().items()}
    assert official(SAMPLES / "cube_to_bowl_config.py") == ours


def test_a_proposed_file_serves_both_code_bases(official, tmp_path):
    from gr00t_nb.data.lerobot import LeRobotDataset
    from gr00t_nb.data.proposal import propose_config, save_config
    config, reasons = propose_config(LeRobotDataset(SAMPLE))
    file = save_config(config, tmp_path / "proposed.py", reasons=reasons)
    assert official(file) == {m: c.to_json() for m, c in config.items()}
