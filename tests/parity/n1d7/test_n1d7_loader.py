"How N1.7 deals steps out to shards, and what stands before an episode's first step. All of it is exact."
import itertools
import json

import numpy as np
import pytest
from bundles import json_of

from gr00t_nb.cosmos.n1d7_processor import Gr00tN1d7Processor
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_step
from gr00t_nb.errors import InputError
from gr00t_nb.loading.official_order import OfficialStream, mixture_samples, shard_episodes
from gr00t_nb.loading.order import DataSource
from gr00t_nb.modality_configs import ModalityConfig

DEFAULTS = dict(shard_size=1024, episode_sampling_rate=0.1, seed=42)


def pytest_generate_tests(metafunc):
    cases = json_of(metafunc.config, "dataset/sharding.json", {}, "n1d7")
    if "variant" in metafunc.fixturenames: metafunc.parametrize("variant", sorted(cases))
    if "dealt" in metafunc.fixturenames:
        own = [v for v, c in cases.items() if "error" not in c and c["params"]["episode_lengths"] is None]
        metafunc.parametrize("dealt", sorted(own))


@pytest.fixture(scope="module")
def data(reference) -> LeRobotDataset:
    path = reference.parent / "datasets" / "gr1.PickNPlace"
    if not path.is_dir(): pytest.skip(f"no data set at {path}")
    return LeRobotDataset(path)


def test_sharding(bundle, request, variant):
    case = json.loads(bundle("dataset/sharding.json").read_text())[variant]
    p = DEFAULTS | case["params"]
    lengths, horizon = p.pop("episode_lengths"), p.pop("action_horizon")
    if lengths is None: lengths = [e.length for e in request.getfixturevalue("data").episodes]
    if "error" in case:
        with pytest.raises(InputError, match="steps of an action chunk"):
            shard_episodes(lengths, horizon, **p, filled_first=True)
        return
    shards = shard_episodes(lengths, horizon, **p, filled_first=True)
    assert len(shards) == case["num_shards"]
    assert [sum(len(s) for _, s in shard) for shard in shards] == case["shard_lengths"]
    assert [[[e, s.tolist()] for e, s in shard] for shard in shards] == case["shards"]


def test_stream(bundle, data, dealt):
    "The stream that training reads deals out a real data set as the official loader does."
    case = json.loads(bundle("dataset/sharding.json").read_text())[dealt]
    p = DEFAULTS | case["params"]
    key = next(iter(data.modality["action"]))
    robot = dict(action=ModalityConfig(range(p["action_horizon"]), [key]))
    stream = OfficialStream(
        [DataSource(data, "robocasa_gr1_tabletop", robot)],
        Gr00tN1d7Processor({}),
        p["seed"],
        p["shard_size"],
        p["episode_sampling_rate"],
        num_shards_per_epoch=50,
    )
    numbers = mixture_samples([case["shard_lengths"]], [1.0], 50, p["seed"])
    for got in itertools.islice(stream.order(), 3):
        expected = list(itertools.islice(numbers, len(got)))
        flat = [(0, e, i) for e, steps in case["shards"][expected[0][1]] for i in steps]
        assert list(map(tuple, got.tolist())) == [flat[i] for _, _, i in expected]


@pytest.mark.parametrize("wrap", [False, True])
def test_two_frames_at_the_beginning(data, wrap):
    "Fifteen steps before the third: the first step, or with the switch, as officially, one near the end."
    view = next(iter(data.modality["video"]))
    robot = dict(video=ModalityConfig([-15, 0], [view]), action=ModalityConfig(range(8), ["waist"]))
    source = DataSource(data, "robocasa_gr1_tabletop", robot)
    stream = OfficialStream([source], Gr00tN1d7Processor({}), wrap=wrap)
    step, = stream.read(np.array([[0, 1, 3]]), [None])
    before = data.length(1) - 12 if wrap else 0
    want = stream.processor.prepare(data.frames(1, view, [before, 3]))
    np.testing.assert_array_equal(step[f"video.{view}"], want)
    raw = read_step(data, 1, 3, robot, pad=not wrap, wrap=wrap)
    np.testing.assert_array_equal(raw[f"video.{view}"], data.frames(1, view, [before, 3]))
    assert (want[0] != want[1]).any()
