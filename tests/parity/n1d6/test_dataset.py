"Sharding, mixture schedules, samples and iteration against the official implementation. Everything here is exact."
import itertools
import json

import numpy as np
import pytest
from bundles import json_of
from safetensors.numpy import load_file

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.loading.order import DataSource
from gr00t_nb.loading.official_order import OfficialStream, mixture_samples, mixture_schedule
from gr00t_nb.loading.official_order import shard_episodes, worker_shards
from gr00t_nb.data.moments import merge_statistics
from gr00t_nb.data.steps import read_step
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.errors import InputError


def pytest_generate_tests(metafunc):
    def cases(name, values, ids=None):
        if name in metafunc.fixturenames: metafunc.parametrize(name, values, ids=ids)
    sharding = json_of(metafunc.config, "dataset/sharding.json", {})
    cases("variant", sorted(sharding))
    cases("dealt", sorted(v for v in sharding if "error" not in sharding[v]))
    cases("mixture", sorted(json_of(metafunc.config, "dataset/mixture_schedule.json", {})))
    samples = json_of(metafunc.config, "dataset/samples.json", [])
    cases("case", samples, [f"sample{s['sample']}" for s in samples])
    before = [
        s
        for s in samples
        if not s["config"].get("allow_padding")
        and s["step"] + min(min(c["delta_indices"]) for c in s["modality_configs"].values()) < 0
    ]
    cases("early", before, [f"sample{s['sample']}" for s in before])
    iteration = json_of(metafunc.config, "dataset/iteration.json", {})
    cases("merged", [k for k in iteration if "statistics" in k])
    cases(
        "iterated", [k for k in iteration if "samples" in iteration[k] or "batches" in iteration[k]]
    )


@pytest.fixture(scope="module")
def datasets(reference):
    "Every data set beside the bundles of a version that the official loader reads."
    found = []
    for info in sorted((reference / ".." / "datasets").resolve().glob("*/meta/info.json")):
        if json.loads(info.read_text())["codebase_version"].startswith("v2"):
            found.append(LeRobotDataset(info.parents[1]))
    return found or pytest.skip("no LeRobot 2.x data set beside the bundles")


# ---- sharding
def test_sharding(bundle, datasets, variant):
    case = json.loads(bundle("dataset/sharding.json").read_text())[variant]
    p = case["params"]
    horizon, settings = p["action_horizon"], {
        k: p[k] for k in ("shard_size", "episode_sampling_rate", "seed")
    }
    if "error" in case:
        for ds in datasets:
            with pytest.raises(InputError, match="shard_size"):
                shard_episodes([e.length for e in ds.episodes], horizon, **settings)
        return
    ds = next(
        (
            d
            for d in datasets
            if [max(0, e.length - horizon + 1) for e in d.episodes]
            == case["effective_episode_lengths"]
        ),
        None,
    )
    assert ds is not None, "no data set beside the bundles has episodes of these lengths"
    shards = shard_episodes([e.length for e in ds.episodes], horizon, **settings)
    assert len(shards) == case["num_shards"]
    assert [sum(len(s) for _, s in shard) for shard in shards] == case["shard_lengths"]
    assert [[[e, s.tolist()] for e, s in shard] for shard in shards] == case["shards"]


def test_stream_shards(bundle, datasets, dealt):
    "The stream that training reads deals out a real data set as the official loader does."
    case = json.loads(bundle("dataset/sharding.json").read_text())[dealt]
    p = case["params"]
    ds = next(
        d
        for d in datasets
        if [max(0, e.length - p["action_horizon"] + 1) for e in d.episodes]
        == case["effective_episode_lengths"]
    )
    key = next(iter(ds.modality["action"]))
    source = DataSource(ds, "gr1", {"action": ModalityConfig(range(p["action_horizon"]), [key])})
    stream = OfficialStream(
        [source],
        None,
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


# ---- mixture
def schedule_of(case, epoch):
    p = case["params"]
    return mixture_schedule(
        case["shard_lengths"], p["weights"], p["num_shards_per_epoch"], p["seed"], epoch
    )


def test_schedule(bundle, mixture):
    case = json.loads(bundle("dataset/mixture_schedule.json").read_text())[mixture]
    for epoch, expected in case["schedule_by_epoch"].items():
        assert [list(x) for x in schedule_of(case, int(epoch))] == expected


def test_workers(bundle, mixture):
    case = json.loads(bundle("dataset/mixture_schedule.json").read_text())[mixture]
    schedule = schedule_of(case, 0)
    for name, expected in case["worker_split_epoch0"].items():
        world, rank, workers, worker = (
            int(part.lstrip("worldrankesm")) for part in name.split("_")
        )
        assert [
            list(x) for x in worker_shards(schedule, rank, world, worker, workers)
        ] == expected, name


def test_order_within_shards(bundle, mixture):
    case = json.loads(bundle("dataset/mixture_schedule.json").read_text())[mixture]
    for epoch, shards in case["within_shard_order_of_first_three_shards"].items():
        p = case["params"]
        # a loader that begins at an epoch is one whose seed is larger by it
        ours = mixture_samples(
            case["shard_lengths"], p["weights"], p["num_shards_per_epoch"], p["seed"] + int(epoch)
        )
        for shard in shards:
            got = list(itertools.islice(ours, len(shard["order"])))
            assert got == [(shard["dataset"], shard["shard"], i) for i in shard["order"]]


# ---- iteration
def test_iteration(bundle, iterated):
    case = json.loads(bundle("dataset/iteration.json").read_text())[iterated]
    p = case["params"]

    def stream(worker, workers):
        return mixture_samples(
            case["shard_lengths"],
            p["weights"],
            p["num_shards_per_epoch"],
            p["seed"],
            worker=worker,
            workers=workers,
        )
    if "samples" in case:
        assert [list(x) for x in itertools.islice(stream(0, 1), len(case["samples"]))] == case[
            "samples"
        ]
    else:
        workers, size = {"two": 2, "three": 3, "four": 4}[iterated.split("_")[0]], len(
            case["batches"][0]
        )
        streams = [stream(w, workers) for w in range(workers)]
        for b, expected in enumerate(case["batches"]):
            assert [list(x) for x in itertools.islice(streams[b % workers], size)] == expected, b


def test_stream_iteration(bundle, iterated):
    """The same through the stream, whose shards are made up so that episode and step of a sample are
    the shard and the index of the bundle."""
    case = json.loads(bundle("dataset/iteration.json").read_text())[iterated]
    p = case["params"]
    stream = OfficialStream([], None, p["seed"], num_shards_per_epoch=p["num_shards_per_epoch"])
    stream.sources = [DataSource(None, "gr1", {}, ratio=w) for w in p["weights"]]
    stream.shard_lengths = case["shard_lengths"]
    stream.shards = [
        [[(s, np.arange(n))] for s, n in enumerate(lengths)] for lengths in case["shard_lengths"]
    ]

    def samples(worker, workers):
        return (x for shard in stream.order(worker, workers) for x in shard.tolist())
    if "samples" in case:
        assert list(itertools.islice(samples(0, 1), len(case["samples"]))) == [
            list(x) for x in case["samples"]
        ]
    else:
        workers, size = {"two": 2, "three": 3, "four": 4}[iterated.split("_")[0]], len(
            case["batches"][0]
        )
        streams = [samples(w, workers) for w in range(workers)]
        for b, expected in enumerate(case["batches"]):
            assert list(itertools.islice(streams[b % workers], size)) == [
                list(x) for x in expected
            ], b


def test_merged_statistics(bundle, merged):
    case = json.loads(bundle("dataset/iteration.json").read_text())[merged]
    ours = merge_statistics(case["inputs"], case["weights"])
    assert set(ours) == set(case["output"])
    for group, expected in case["output"].items():
        assert set(ours[group]) == set(expected)
        for entry, values in expected.items():
            np.testing.assert_allclose(
                ours[group][entry], values, rtol=1e-12, atol=1e-14, err_msg=f"{group} {entry}"
            )


# ---- samples
def test_sample(bundle, datasets, case):
    config = {m: ModalityConfig.from_json(c) for m, c in case["modality_configs"].items()}
    ds = next(
        (
            d
            for d in datasets
            if all(k in d.modality["video"] for k in config["video"].modality_keys)
            and case["episode"] < len(d)
            and d.episodes[case["episode"]].length == case["episode_length"]
        ),
        None,
    )
    assert ds is not None, "no data set beside the bundles has this episode"
    pad = bool(case["config"].get("allow_padding"))
    if "error" in case:
        with pytest.raises(InputError, match=str(case["step"])):
            read_step(ds, case["episode"], case["step"], config, pad=pad, wrap=True)
        return
    step = read_step(ds, case["episode"], case["step"], config, pad=pad, wrap=True)
    tensors = {
        k.split("/", 1)[1].replace("/", "."): v
        for k, v in load_file(bundle("dataset/samples.safetensors")).items()
        if k.startswith(f"{case['sample']}/")
    }
    key, = config["language"].modality_keys
    assert set(step) == set(tensors) | {key}
    for name, expected in tensors.items():
        assert step[name].dtype == expected.dtype and step[name].shape == expected.shape, name
        np.testing.assert_array_equal(step[name], expected, name)
    # an episode's several tasks are drawn by an unseeded generator officially: any of them will do
    assert case["text"] in (
        [step[key]] if key.startswith("annotation.") else ds.episodes[case["episode"]].tasks
    )


def test_wrap_is_not_the_default(bundle, datasets, early):
    "Where the official loader takes a step before the first one from the end of the episode, ours refuses."
    config = {m: ModalityConfig.from_json(c) for m, c in early["modality_configs"].items()}
    ds = next(
        d
        for d in datasets
        if early["episode"] < len(d)
        and d.episodes[early["episode"]].length == early["episode_length"]
    )
    with pytest.raises(InputError, match="pad=True"):
        read_step(ds, early["episode"], early["step"], config)
