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
sys.path.insert(0, str(SAMPLES))

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
    assert not (SAMPLE / "meta/stats.json").exists()  # the kit computes it


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


def test_configuration_names_what_the_data_set_has():
    from gr00t_nb.embodiments import MODALITY_CONFIGS
    before = MODALITY_CONFIGS.pop("new_embodiment", None)
    try:
        sys.modules.pop("cube_to_bowl_config", None)
        import cube_to_bowl_config
        config = MODALITY_CONFIGS["new_embodiment"]
        assert config == cube_to_bowl_config.cube_to_bowl
        modality = json.loads((SAMPLE / "meta/modality.json").read_text())
        for kind in ("video", "state", "action"):
            assert config[kind].modality_keys == list(modality[kind])
        assert config["language"].modality_keys == [
            "annotation." + key for key in modality["annotation"]
        ]
        assert config["action"].delta_indices == list(range(16))
    finally:
        MODALITY_CONFIGS.pop("new_embodiment", None)
        if before is not None:
            MODALITY_CONFIGS["new_embodiment"] = before
