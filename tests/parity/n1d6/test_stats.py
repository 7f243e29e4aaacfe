"Statistics against those that the official implementation computed from the data set itself."
import json

import numpy as np
import pytest
from bundles import json_of

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.moments import ENTRIES
from gr00t_nb.processing.statistics import dataset_statistics, relative_statistics
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig


def pytest_generate_tests(metafunc):
    for name, file in (("feature", "stats/stats.json"), ("group", "stats/relative_stats.json")):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, sorted(json_of(metafunc.config, file, {})))


def modality_configs(reference):
    "Every modality configuration that a saved processor of the bundles holds."
    for file in sorted(reference.glob("*/*/processor_config.json")):
        for config in json.loads(file.read_text())["processor_kwargs"]["modality_configs"].values():
            yield {m: ModalityConfig.from_json(c) for m, c in config.items()}


@pytest.fixture(scope="module")
def dataset(reference):
    "The data set whose features the bundle's statistics name."
    stats = json.loads((reference / "stats/stats.json").read_text())
    for path in sorted((reference / ".." / "datasets").resolve().iterdir()):
        info = path / "meta/info.json"
        if (
            info.exists()
            and json.loads(info.read_text())["codebase_version"].startswith("v2")
            and (path / "meta/modality.json").exists()
        ):
            if set(stats) <= set(json.loads(info.read_text())["features"]):
                return LeRobotDataset(path)
    pytest.skip("no data set with the features of stats/stats.json beside the bundles")


@pytest.fixture(scope="module")
def computed(dataset): return dataset_statistics(dataset)


@pytest.fixture(scope="module")
def relative(reference, dataset):
    "Relative statistics for the groups and horizon of the bundle."
    expected = json.loads((reference / "stats/relative_stats.json").read_text())
    for config in modality_configs(reference):
        action = config["action"]
        named = {
            g
            for g, c in zip(action.modality_keys, action.action_configs or [])
            if c.rep.name == "RELATIVE"
        }
        if named == set(expected) and len(action.delta_indices) == len(
            next(iter(expected.values()))["mean"]
        ):
            break
    else:
        horizon = len(next(iter(expected.values()))["mean"])
        config = {
            "state": ModalityConfig([0], list(expected)),
            "action": ModalityConfig(
                range(horizon),
                list(expected),
                action_configs=[ActionConfig("RELATIVE")] * len(expected),
            ),
        }
    return relative_statistics(dataset, config)


def check(ours, theirs):
    """Extremes are exact, quantiles good to 1e-6, means and deviations (sums in float32, whose order
    varies with numpy) to 1e-5."""
    assert set(theirs) == set(ENTRIES)
    size = np.maximum(
        np.abs(theirs["min"]), np.abs(theirs["max"])
    )  # rounding of a sum scales with its terms, not with its value
    for entry in ENTRIES:
        a, b = np.array(ours[entry]), np.array(theirs[entry])
        assert a.shape == b.shape
        if entry in ("min", "max"):
            np.testing.assert_array_equal(a, b, entry)
        elif entry in ("q01", "q99"):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=0, err_msg=entry)
        else:
            assert (np.abs(a - b) <= 1e-5 * np.abs(b) + 5e-7 * size).all(), entry


def test_features(bundle, computed):
    assert set(computed) == set(json.loads(bundle("stats/stats.json").read_text()))


def test_statistics(bundle, computed, feature):
    check(computed[feature], json.loads(bundle("stats/stats.json").read_text())[feature])


def test_groups(bundle, relative):
    assert list(relative) == sorted(json.loads(bundle("stats/relative_stats.json").read_text()))


def test_relative_statistics(bundle, relative, group):
    check(relative[group], json.loads(bundle("stats/relative_stats.json").read_text())[group])


@pytest.mark.parametrize("name", ["stats", "relative_stats"])
def test_difference_to_shipped(bundle, dataset, computed, relative, name):
    "The shipped files describe a larger collection; the bundle says by how much they differ from the computed ones."
    shipped, ours = (
        dataset.path / f"meta/{name}.json",
        {"stats": computed, "relative_stats": relative}[name],
    )
    if not shipped.exists(): pytest.skip(f"the data set ships no {name}.json")
    shipped = json.loads(shipped.read_text())
    for key, expected in json.loads(bundle(f"stats/{name}_vs_shipped.json").read_text()).items():
        feature, entry = key.rsplit("/", 1)
        a, b = np.array(ours[feature][entry]), np.array(shipped[feature][entry])
        assert list(a.shape) == expected["shape"]
        assert np.array_equal(a, b) == expected["bit_equal"]
        assert np.abs(a - b).max() == pytest.approx(expected["max_abs_diff"], rel=1e-6, abs=1e-9)
