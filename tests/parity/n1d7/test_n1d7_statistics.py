"Statistics and their fingerprints against the official ones; the data set's folder stays as it is."
import json
import shutil
import warnings

import numpy as np
import pytest
from bundles import json_of

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.moments import ENTRIES
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.processing.embodiment_statistics import FINGERPRINTS, embodiment_statistics
from gr00t_nb.processing.embodiment_statistics import feature_fingerprint, relative_fingerprints
from gr00t_nb.processing.statistics import dataset_statistics, relative_statistics
from gr00t_nb.robots import N1D7_ROBOTS

TAG = "robocasa_gr1_tabletop"


def pytest_generate_tests(metafunc):
    for name, file in (("feature", "stats/stats.json"), ("group", "stats/relative_stats.json")):
        if name in metafunc.fixturenames:
            known = json_of(metafunc.config, file, {}, "n1d7")
            metafunc.parametrize(name, sorted(k for k in known if k != FINGERPRINTS))


@pytest.fixture(scope="module")
def folder(reference):
    path = reference.parent / "datasets" / "gr1.PickNPlace"
    return path if path.is_dir() else pytest.skip(f"no data set at {path}")


@pytest.fixture(scope="module")
def robot(bundle) -> dict:
    "The built-in configuration, with a language that the data set has."
    said = json.loads(bundle("embodiments.json").read_text())["modality_configs"][TAG]
    return {m: ModalityConfig.from_json(c) for m, c in said.items()}


@pytest.fixture(scope="module")
def computed(folder): return dataset_statistics(LeRobotDataset(folder))


@pytest.fixture(scope="module")
def relative(folder, robot): return relative_statistics(LeRobotDataset(folder), robot)


def check(ours, theirs):
    "Extremes are exact, quantiles good to 1e-6, means and deviations (sums in float32) to 1e-5."
    assert set(theirs) == set(ENTRIES)
    size = np.maximum(np.abs(theirs["min"]), np.abs(theirs["max"]))
    for entry in ENTRIES:
        a, b = np.array(ours[entry]), np.array(theirs[entry])
        assert a.shape == b.shape
        if entry in ("min", "max"): np.testing.assert_array_equal(a, b, entry)
        elif entry in ("q01", "q99"): np.testing.assert_allclose(a, b, rtol=1e-6, atol=0, err_msg=entry)
        else: assert (np.abs(a - b) <= 1e-5 * np.abs(b) + 5e-7 * size).all(), entry


def test_features(bundle, computed, feature):
    known = json.loads(bundle("stats/stats.json").read_text())
    assert set(computed) == set(known) - {FINGERPRINTS}
    check(computed[feature], known[feature])


def test_relative_groups(bundle, relative, group):
    known = json.loads(bundle("stats/relative_stats.json").read_text())
    assert list(relative) == sorted(set(known) - {FINGERPRINTS})
    check(relative[group], known[group])


def test_fingerprints_of_features(bundle, folder):
    for case in json.loads(bundle("stats/cache_cases.json").read_text())["feature_fingerprints"]:
        assert feature_fingerprint(case["feature"], case["meta"]) == case["fingerprint"]
    stored = json.loads(bundle("stats/stats.json").read_text())[FINGERPRINTS]
    features = LeRobotDataset(folder).info["features"]
    assert {n: feature_fingerprint(n, features[n]) for n in stored} == stored


def test_fingerprints_of_relative_groups(bundle, robot):
    stored = json.loads(bundle("stats/relative_stats.json").read_text())[FINGERPRINTS]
    assert relative_fingerprints(TAG, robot) == stored
    seen = 0
    for case in json.loads(bundle("stats/cache_cases.json").read_text())["relative_fingerprints"]:
        ours = relative_fingerprints(case["embodiment_tag"], N1D7_ROBOTS.configs[case["embodiment_tag"]])
        if case["action_key"] not in ours: continue  # an absolute group has no relative statistics
        assert ours[case["action_key"]] == case["fingerprint"], case
        seen += 1
    assert seen


# ---------------------------------------------------------------- which file is believed
@pytest.fixture
def copy(folder, tmp_path, monkeypatch):
    "The data set without its videos; `copy.asks()` is its statistics by N1.7's rule, and the warnings."
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path / "cache"))
    for part in ("meta", "data"): shutil.copytree(folder / part, tmp_path / "set" / part)
    return tmp_path / "set"


def ask(path, robot, tag=TAG):
    "Statistics by N1.7's rule, and what was warned of; the folder keeps its bytes."
    files = {f: f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
    parts = {m: c for m, c in robot.items() if m in ("state", "action")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = embodiment_statistics(LeRobotDataset(path), parts, fingerprinted=tag)
    assert {f: f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()} == files
    return out, "\n".join(str(w.message) for w in caught)


def of_groups(stats: dict, path, robot) -> dict:
    "Statistics by column as those of groups."
    ds, out = LeRobotDataset(path), {}
    for kind in ("state", "action"):
        groups = ds.groups(kind, robot[kind].modality_keys)
        out[kind] = {n: {k: list(stats[g.column][k])[g.dims] for k in ENTRIES} for n, g in groups.items()}
    return out


def test_shipped_without_fingerprints_are_not_used(bundle, copy, robot, computed, relative):
    told = json.loads(bundle("stats/cache_cases.json").read_text())
    assert told["shipped_stats_recomputed_because_no_fingerprint"]
    assert FINGERPRINTS not in json.loads((copy / "meta/stats.json").read_text())
    ours, said = ask(copy, robot)
    assert {k: ours[k] for k in ("state", "action")} == of_groups(computed, copy, robot)
    assert ours["relative_action"] == {g: {k: relative[g][k] for k in ENTRIES} for g in relative}


def test_official_files_are_used(bundle, copy, robot):
    "Those that the official code wrote are up to date, and win even if their numbers were changed."
    told = json.loads(bundle("stats/cache_cases.json").read_text())
    assert told["fresh_fingerprint_wins_even_if_values_differ"]
    stats, relative = (
        json.loads(bundle(f"stats/{n}.json").read_text()) for n in ("stats", "relative_stats")
    )
    stats["action"]["mean"] = [x + 1 for x in stats["action"]["mean"]]
    for name, known in (("stats", stats), ("relative_stats", relative)):
        (copy / f"meta/{name}.json").write_text(json.dumps(known))
    ours, said = ask(copy, robot)
    assert {k: ours[k] for k in ("state", "action")} == of_groups(stats, copy, robot)
    for g, s in ours["relative_action"].items(): assert s == {k: relative[g][k] for k in ENTRIES}


def test_stale_entries_alone_are_computed(bundle, copy, robot, computed, relative):
    "Another type of a column; another horizon; another robot."
    stats, known = (
        json.loads(bundle(f"stats/{n}.json").read_text()) for n in ("stats", "relative_stats")
    )
    stats["observation.state"]["mean"] = [x + 1 for x in stats["observation.state"]["mean"]]
    (copy / "meta/stats.json").write_text(json.dumps(stats))
    (copy / "meta/relative_stats.json").write_text(json.dumps(known))
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["action"]["dtype"] = "float32"
    (copy / "meta/info.json").write_text(json.dumps(info))
    ours, said = ask(copy, robot)
    assert "statistics of action for other data types" in said
    want = of_groups(stats | dict(action=computed["action"]), copy, robot)
    for kind in ("state", "action"): assert ours[kind] == want[kind]
    longer = robot | dict(action=ModalityConfig(range(9), robot["action"].modality_keys,
                                                action_configs=robot["action"].action_configs))
    ours, said = ask(copy, longer)
    assert np.shape(ours["relative_action"]["left_arm"]["mean"])[0] == 9 and "offsets" in said
    ours, said = ask(copy, robot, "new_embodiment")
    assert "left_arm" in said and ours["relative_action"]["left_arm"]["mean"] == relative["left_arm"]["mean"]


@pytest.mark.parametrize("text", ["", '{"action": {"mean": [1.0', '"text"'])
def test_broken_files_count_as_absent(bundle, copy, robot, computed, text):
    told = json.loads(bundle("stats/cache_cases.json").read_text())
    assert told["empty_file_regenerated"] and told["truncated_file_regenerated"]
    (copy / "meta/stats.json").write_text(text)
    ours, said = ask(copy, robot)
    assert {k: ours[k] for k in ("state", "action")} == of_groups(computed, copy, robot)
