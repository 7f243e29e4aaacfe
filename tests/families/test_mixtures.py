"What several robots in one run promise: shares, statistics and held-out episodes of each, exact resume."
import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import ROOT
from preloaded import python
from test_resume import StopAfter, same, states
from torch.utils.data import DataLoader

from gr00t_nb.data.moments import merge_statistics
from gr00t_nb.engine.collation import Collator
from gr00t_nb.engine.hooks import Hooks, WeightedLoss
from gr00t_nb.errors import InputError
from gr00t_nb.evaluation.asking import AskingConfig
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.files import read_json, read_jsonl, write_json
from gr00t_nb.loading.official_order import path_weights
from gr00t_nb.loading.order import GlobalBatches
from gr00t_nb.processing.batches import pad_prompts
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics
from gr00t_nb.runs.run_folder import newest_checkpoint
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune
from gr00t_nb.settings.mixtures import MixtureEntry
from gr00t_nb.settings.roots import mixture_table
from gr00t_nb.training.plan import plan_run
from gr00t_nb.training.prepare import entry_facts, prepare_data, training_dataset

HERE = Path(__file__).resolve().parent
DATA, ROBOT = ROOT / "data_samples/cube_to_bowl", ROOT / "data_samples/cube_to_bowl_config.py"
FEW = [*range(8, 40)]  # left out: eight episodes of each data set are enough
STEPS, STOP = 6, 4


def copied(folder: Path, modality: dict | None = None, episodes: int | None = None) -> Path:
    "The sample with links for files; with other names for its columns, and fewer episodes."
    for file in DATA.rglob("*"):
        place = folder / file.relative_to(DATA)
        if file.is_dir(): place.mkdir(parents=True, exist_ok=True)
        elif file.name not in ("modality.json", "episodes.jsonl"): place.symlink_to(file)
    write_json(folder / "meta/modality.json", modality or read_json(DATA / "meta/modality.json"))
    rows = (DATA / "meta/episodes.jsonl").read_text().splitlines()[:episodes]
    (folder / "meta/episodes.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def robots(family, tmp_path_factory) -> SimpleNamespace:
    "Two robots: the sample's arm, and one of four joints with another camera."
    folder = tmp_path_factory.mktemp("robots")
    small = copy.deepcopy(read_json(DATA / "meta/modality.json"))
    small["state"] = small["action"] = dict(joints=dict(start=0, end=4))
    small["video"] = dict(side=dict(original_key="observation.images.wrist"))
    arm, other = copied(folder / "arm", episodes=8), copied(folder / "other", small, 8)
    more = copied(folder / "more", small, 5)
    now = dict(delta_indices=[0])
    joints = dict(modality_keys=["joints"])
    config = dict(
        video=now | dict(modality_keys=["side"]),
        state=now | joints,
        action=dict(delta_indices=list(range(8))) | joints | dict(action_configs=[dict(rep="RELATIVE")]),
        language=now | dict(modality_keys=["annotation.human.task_description"]),
    )
    one = MixtureEntry("arm", str(arm), "NEW_EMBODIMENT", 2, str(ROBOT))
    if "mixed_images" not in family.capabilities:  # as many cameras as the other robot has
        own = dict(now, modality_keys=["front"])
        groups = dict(modality_keys=["single_arm", "gripper"])
        chunk = dict(delta_indices=list(range(16))) | groups
        alone = config | dict(video=own, state=now | groups, action=chunk)
        one = replace(one, modality_config_path=None, modality_config=alone)
    two = MixtureEntry("small", str(other), "GR1", 1, modality_config=config)
    if "gr1" not in family.embodiment_ids: two = replace(two, embodiment_id=1)  # a generation without that tag
    return SimpleNamespace(one=one, two=two, folder=folder, more=str(more))


def asked(base: Path, entries: list[MixtureEntry], output: Path, **more) -> FinetuneConfig:
    config = FinetuneConfig(
        str(base),
        mixture=entries,
        check_data=False,
        shipped_statistics=False,  # the files are of the whole sample
        val_fraction=0.25,
        eval_steps=STEPS,
        eval_chunks=6,
        global_batch_size=6,
        max_steps=STEPS,
        save_steps=100,
        logging_steps=1,
        learning_rate=1e-3,
        dataloader_num_workers=0,
        output_dir=str(output),
    )
    return replace(config, **more)


@pytest.fixture(scope="module")
def run(family, base, robots, tmp_path_factory) -> SimpleNamespace:
    "A run over both robots, and what it said."
    output = tmp_path_factory.mktemp("mixture") / "run"
    config = asked(base, [robots.one, robots.two], output)
    return SimpleNamespace(config=config, result=finetune(config), output=output)


# ------------------------------------------------------------------- batches

def loaded(prepared, batches: int, ranks: int, workers: int) -> list[dict]:
    "The samples of the first global batches, as so many processes with so many workers load them."
    size = prepared.config.global_batch_size
    parts = []
    for rank in range(ranks):
        data = training_dataset(prepared.config, prepared)
        order = GlobalBatches(size, rank, ranks)
        own = DataLoader(data, batch_sampler=order, collate_fn=list, num_workers=workers)
        parts.append([batch for _, batch in zip(range(batches), own)])
    return [sample for together in zip(*parts) for part in together for sample in part]


@pytest.mark.parametrize("ranks, workers", [(1, 2), (2, 0), (2, 1), (3, 2)])
def test_batches_are_the_same_for_any_processes_and_workers(base, robots, tmp_path, ranks, workers):
    prepared = prepare_data(asked(base, [robots.one, robots.two], tmp_path))
    alone, many = loaded(prepared, 3, 1, 0), loaded(prepared, 3, ranks, workers)
    assert len(alone) == len(many) == 18
    for a, b in zip(alone, many):
        assert a.keys() == b.keys() and a["text"] == b["text"]
        assert len(a["images"]) == len(b["images"])
        assert all(np.array_equal(x, y) for x, y in zip(a["images"], b["images"]))
        for k in ("state", "action", "action_mask", "embodiment_id", "sample_index"):
            assert np.array_equal(a[k], b[k]), k
    assert len({a["embodiment_id"] for a in alone}) == 2


def test_shares_are_exact_and_the_steps_of_an_entry_come_equally_often(base, robots, tmp_path):
    several = replace(robots.two, dataset_path=[robots.two.dataset_path, robots.more])
    prepared = prepare_data(asked(base, [robots.one, several], tmp_path, val_fraction=0.0, eval_steps=None))
    order = training_dataset(prepared.config, prepared).order
    where = order(np.arange(order.block))
    assert np.bincount(where[:, 0] > 0).tolist() == [order.block * 2 // 3, order.block // 3]
    four = order(np.arange(4 * order.block))
    steps, counts = np.unique(four[four[:, 0] > 0], axis=0, return_counts=True)
    often = counts.sum() // order.sizes[1]
    assert len(steps) == order.sizes[1] and set(counts.tolist()) <= {often, often + 1}
    assert set(steps[:, 0].tolist()) == {1, 2}  # both data sets of the entry, as one
    assert order.sizes == [prepared.entries[0][0].samples, sum(r.samples for r in prepared.entries[1])]


def test_a_batch_of_two_robots_is_each_sample_alone(family, base, robots, tmp_path):
    "The loss is the mean over the numbers of both, and nobody's sample is another's matter."
    prepared = prepare_data(asked(base, [robots.one, robots.two], tmp_path))
    data, model = training_dataset(prepared.config, prepared), family.load_model(base).double()
    collate, samples = Collator(prepared.processor, model.config, 0), data.__getitems__(range(6))
    whole = collate(samples)
    assert len(set(whole["embodiment_id"].tolist())) == 2
    padded = whole["input_ids"].shape[1], prepared.processor.tokenizer.pad_token_id
    each = [pad_prompts(collate([s]), *padded) for s in samples]
    with torch.no_grad(): together, alone = model(whole), [model(b) for b in each]
    counts = [b["action_mask"].sum().item() for b in each]
    mean = sum(a["loss"].item() * n for a, n in zip(alone, counts)) / sum(counts)
    assert together["loss"].item() == pytest.approx(mean, rel=1e-6)


@pytest.mark.engine
def test_two_processes_train_as_one(family, robots, tmp_path):
    """In float64, losses of a mixture: the processes have chunks of different sizes in their batches. What a
    family counts in a batch is held above for each, what processes make of it is the engine's."""
    still = dict(dropout=0.0) if "dropout" in family.capabilities else {}
    more = dict(eval_steps=None, max_steps=2, warmup_ratio=0.0, **still)
    logs = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        config = asked(family.tiny_name, [robots.one, robots.two], output, **more)
        done = python(HERE / "train.py", "--double", *config.to_flags(), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        logs.append([r["loss"] for r in read_jsonl(output / "log.jsonl")])
    near = 0.05 if "padding_matters" in family.capabilities else 1e-6  # prompts are padded in each batch
    assert logs[1] == pytest.approx(logs[0], rel=near)


def test_the_official_order_draws_from_both(base, robots, tmp_path):
    "By the weights of NVIDIA's loader: of an entry with two data sets by their shards."
    several = replace(robots.two, dataset_path=[robots.two.dataset_path, robots.more])
    more = dict(sampling="official", shard_size=64, val_fraction=0.0, eval_steps=None)
    prepared = prepare_data(asked(base, [robots.one, several], tmp_path, **more))
    stream = training_dataset(prepared.config, prepared)
    counts = [len(shards) for shards in stream.shards]
    assert stream.weights == [2, *path_weights(1, counts[1:])]
    drawn = [s["embodiment_id"] for _, s in zip(range(200), stream)]
    assert len(set(drawn)) == 2


# ------------------------------------------------------------------- a run

def test_each_robot_has_its_own_statistics(run, robots, sample):
    own = run.result.prepared
    for root in own.roots:
        found = own.processor.statistics[root.tag]
        expected = embodiment_statistics(root.dataset, root.modality_config, False)
        for kind in expected:
            for group, entries in expected[kind].items():
                for k, v in entries.items(): np.testing.assert_array_equal(found[kind][group][k], v)


def test_data_sets_of_one_robot_share_theirs(base, robots, tmp_path):
    several = replace(robots.two, dataset_path=[robots.two.dataset_path, robots.more])
    prepared = prepare_data(asked(base, [robots.one, several], tmp_path))
    one, *both = prepared.roots
    parts = [embodiment_statistics(r.dataset, r.modality_config, False) for r in both]
    expected = merge_statistics(parts, [r.samples for r in both])
    found = prepared.processor.statistics["gr1"]
    for kind in expected:
        for group in expected[kind]:
            for k in expected[kind][group]:
                np.testing.assert_allclose(found[kind][group][k], expected[kind][group][k], rtol=1e-9)
    assert found["state"]["joints"]["mean"] != parts[0]["state"]["joints"]["mean"]


def test_a_run_remembers_what_it_held_out_of_each(run, robots):
    prepared = run.result.prepared
    for r in prepared.roots: assert len(r.val_episodes) == 2
    for r, entry in zip(prepared.roots, (robots.one, robots.two)):
        c = AskingConfig(str(run.output), entry.dataset_path, embodiment_tag=entry.embodiment_tag, device="cpu")
        policy, dataset, episodes = c.open()
        assert episodes == r.val_episodes
    result = evaluate_open_loop(policy, dataset, episodes[:1], steps=16)  # the last one's
    assert [e.number for e in result.episodes] == [dataset.episodes[episodes[0]].index]
    seen = read_jsonl(run.output / "validation.jsonl")[-1]["val"]
    assert {g.partition(".")[0] for g in seen["groups"]} == {"new_embodiment", "gr1"}
    assert np.isfinite(seen["error"])


def test_what_is_told_of_a_mixture(run, capsys, monkeypatch):
    "In the header, the plan, the record and the model card."
    table = mixture_table(entry_facts(run.result.prepared))
    assert [line.split()[0] for line in table] == ["entry", "arm", "small"]
    assert "66.7%" in table[1] and f"{STEPS * 6 // 3}" in table[2].split()
    assert all(line in str(plan_run(replace(run.config, output_dir="x"))) for line in table)
    finetune(run.config)  # nothing is left to do: it says what it is
    said = capsys.readouterr().out
    assert all(line in said for line in table)
    record = read_json(run.output / "experiment_cfg/finetune.json")
    assert [e["name"] for e in record["entries"]] == ["arm", "small"]
    card = (run.output / "README.md").read_text()
    assert all(line in card for line in table) and "--embodiment-tag GR1" in card
    assert {"modality-0.json", "modality-1.json"} <= {f.name for f in (run.output / "experiment_cfg").iterdir()}


def test_a_stopped_run_goes_on_to_the_bit(run, base, robots, tmp_path):
    config = replace(run.config, output_dir=str(tmp_path / "parts"))
    finetune(config, [StopAfter()])
    again = finetune(config)
    assert [r["loss"] for r in again.log] == [r["loss"] for r in run.result.log]
    a, b = (newest_checkpoint(c.output_dir) for c in (run.config, config))
    assert same(states(a), states(b))


def test_resuming_refuses_another_mixture(run, base, robots):
    one, two = robots.one, robots.two
    for entries, words in (
        ([replace(one, ratio=3), two], "ratio of 'arm' was 2, now 3"),
        ([two, one], "the entries of the mixture were arm, small, now small, arm"),
        ([one], "the entries of the mixture were arm, small, now arm"),
        ([one, replace(two, exclude_episodes=[0])], "the training episodes of 'small' differ"),
        ([one, replace(two, embodiment_id=3)], "embodiment_id of 'small' was"),
        ([one, replace(two, dataset_path=[two.dataset_path, robots.more])], "of 'small' differ"),
    ):
        with pytest.raises(InputError, match="belongs to a run with other settings") as e:
            finetune(replace(run.config, mixture=entries))
        assert words in str(e.value)


def test_a_mixture_of_one_entry_is_as_much_its_own(run, base, robots, tmp_path):
    "Its slot is part of it, too."
    alone = replace(run.config, mixture=[robots.two], output_dir=str(tmp_path), max_steps=1, save_steps=1)
    finetune(alone)
    with pytest.raises(InputError, match="embodiment_id of 'small' was"):
        finetune(replace(alone, mixture=[replace(robots.two, embodiment_id=3)], max_steps=2))


def test_a_loss_for_one_robot_is_refused(run):
    hooks = Hooks(loss=WeightedLoss(groups=dict(joints=2.0)))
    with pytest.raises(InputError, match="made for the chunk of one robot, and the mixture has 2"):
        finetune(replace(run.config, output_dir=str(run.output) + "-weighted"), hooks=hooks)


def test_one_entry_is_the_run_of_the_flags(base, robots, tmp_path):
    "To the bit, and several data sets by flags are an entry of several."
    flags = dict(dataset_path=robots.one.dataset_path, embodiment_tag="NEW_EMBODIMENT")
    plain = FinetuneConfig(str(base), **flags, modality_config_path=str(ROBOT))
    same_run = dict(check_data=False, global_batch_size=4, max_steps=2, logging_steps=1, dataloader_num_workers=0)
    entry = MixtureEntry("arm", robots.one.dataset_path, "NEW_EMBODIMENT", 7, str(ROBOT))
    runs = [
        finetune(replace(plain, output_dir=str(tmp_path / "flags"), **same_run)),
        finetune(FinetuneConfig(str(base), mixture=[entry], output_dir=str(tmp_path / "entry"), **same_run)),
    ]
    assert [r["loss"] for r in runs[0].log] == [r["loss"] for r in runs[1].log]
    several = [robots.one.dataset_path, str(DATA)]
    for path in (several, ":".join(several)):
        prepared = prepare_data(replace(plain, dataset_path=path, check_data=False))
        assert [str(r.dataset.path) for r in prepared.roots] == several and len(prepared.entries) == 1


# ------------------------------------------------------------------- when it goes wrong

def refused(base, entries, **more) -> str:
    with pytest.raises(InputError) as e: prepare_data(asked(base, entries, Path("out"), **more))
    return str(e.value)


def test_what_cannot_be_mixed_is_refused_in_a_sentence(base, robots):
    one, two = robots.one, robots.two
    twin = replace(two, name="twin", dataset_path=robots.more)
    other = copy.deepcopy(two.modality_config)
    other["state"]["delta_indices"] = [-1, 0]
    longer = copy.deepcopy(two.modality_config)
    longer["action"]["delta_indices"] = list(range(9999))
    for entries, words in (
        ([one, replace(two, ratio=0)], "ratio of the entry 'small' is 0: expected a number above 0"),
        ([one, replace(two, dataset_path=[])], "The entry 'small' has no data set"),
        ([one, replace(two, dataset_path=one.dataset_path + "/../arm")], "is given twice, in 'arm' and in 'small'"),
        ([two, replace(twin, modality_config=other)], "'small' and 'twin' are both of the robot 'gr1', with different"),
        ([one, replace(two, modality_config=other)], "has 1 state steps, one of 'small' 2"),
        ([one, replace(two, embodiment_id=-1)], "expected a whole number from 0"),
        ([one, replace(two, val_fraction=1.0)], "expected a share from 0 to 0.9"),
        ([one, replace(two, exclude_episodes=[*range(1, 8)])], "has a single episode, which cannot be split"),
        ([one, replace(two, modality_config=longer)], "The entry 'small' has no step to train on"),
        ([two, replace(twin, override_statistics=True)], "with override_statistics None and True"),
    ):
        assert words in refused(base, entries), words


def test_widths_that_cannot_be_merged(base, robots, tmp_path):
    wide = read_json(Path(robots.more) / "meta/modality.json")
    wide["state"] = wide["action"] = dict(joints=dict(start=0, end=5))
    twin = replace(robots.two, dataset_path=[robots.two.dataset_path, str(copied(tmp_path / "wide", wide, 4))])
    assert "state.joints has 4 numbers in" in refused(base, [twin])


def test_slots_over_the_table_and_taken_ones(family, base, robots):
    model, slots = family.read_config(base), {}
    size = getattr(model, "max_num_embodiments", None)
    taken = family.load_processor(base).embodiment_ids["new_embodiment"]
    same_slot = [robots.one, replace(robots.two, embodiment_id=taken)]
    assert f"are to have the same slot, {taken}" in refused(base, same_slot)
    if size is None: return  # no layers of each robot's own
    over = [robots.one, replace(robots.two, embodiment_id=size)]
    assert f"the model has slots 0 to {size - 1}" in refused(base, over)


def test_a_generation_with_one_number_of_images_says_so(family, base, robots):
    entries = [replace(robots.one, modality_config=None, modality_config_path=str(ROBOT)), robots.two]
    if "mixed_images" in family.capabilities: return  # has its test
    assert f"has 2 images, one of 'small' 1, and {family.name} takes batches" in refused(base, entries)


def test_a_mixture_and_flags_of_one_robot_exclude_each_other(base, robots):
    words = refused(base, [robots.one, robots.two], embodiment_tag="GR1")
    assert "--embodiment-tag and --mixture are both given" in words
    assert "hold some out with --val-fraction" in refused(base, [robots.one, robots.two], val_fraction=0.0)


@pytest.mark.engine
def test_the_command_line(tmp_path, robots):
    "A misspelt key, and a plan."
    file = tmp_path / "mixture.yaml"
    said = {e.name: e.to_json() for e in (robots.one, robots.two)}
    file.write_text(json.dumps(said))
    words = ["scripts/finetune.py", "--base-model-path", "tiny", "--mixture", file]
    done = python(*words, "--plan", "--val-fraction", 0.25)
    assert done.returncode == 0 and "small" in done.stdout, done.stderr
    file.write_text(json.dumps(said).replace('"ratio"', '"ration"'))
    done = python(*words, "--plan")
    assert done.returncode == 2 and "has ration; an entry has" in done.stderr
    assert "Did you mean 'ratio'?" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    helped = python("scripts/finetune.py", "--help")
    assert "--dataset-path PATH [PATH ...]" in helped.stdout and "--mixture" in helped.stdout
