"`--trim-idle`: what rests at the ends of episodes is left out of training, from the order to the record."
import json
from dataclasses import replace

import numpy as np
import pytest
from runs import RUN
from transformers import TrainerCallback

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError
from gr00t_nb.files import fingerprint
from gr00t_nb.loading import rest
from gr00t_nb.loading.rest import resting
from gr00t_nb.runs.run_folder import newest_checkpoint
from gr00t_nb.training.finetune import finetune
from gr00t_nb.training.going_on import find_resume
from gr00t_nb.training.plan import plan_run
from gr00t_nb.training.prepare import prepare_data, training_dataset

FEW = [*range(4, 40)]  # episodes of the sample that are left out
REST = 0.1  # s, two rows of the sample: it rests for up to seven
SHORT = replace(RUN, exclude_episodes=FEW, trim_idle=REST, max_steps=2)


class AfterOne(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs): control.should_training_stop = state.global_step == 1


def files(ds: LeRobotDataset) -> str: return fingerprint(p for p in ds.path.rglob("*") if p.is_file())


def test_an_epoch_has_every_moving_step_once_and_no_other():
    prepared, all_of_it = prepare_data(SHORT), prepare_data(replace(SHORT, trim_idle=None))
    ds, robot = prepared.root.dataset, prepared.root.modality_config
    before = files(ds)
    rests = resting(ds, robot)
    wanted = {
        (0, e, i)
        for e, (head, tail) in rests.items()
        for i in range(max(0, head - 2), min(ds.length(e) - 15, ds.length(e) - max(0, tail - 2)))
    }
    order = training_dataset(SHORT, prepared).order
    epoch = order(np.arange(len(order)))
    assert len(epoch) == prepared.samples == len(wanted) < all_of_it.samples
    assert {tuple(w) for w in epoch.tolist()} == wanted
    assert prepared.root.resting == (
        f"without {all_of_it.samples - prepared.samples} steps at rest at the ends of"
        f" {sum(head > 2 for head, _ in rests.values())} episodes"
    )
    assert files(ds) == before  # nothing is written to the data


def test_statistics_are_those_of_whole_episodes():
    a, b = prepare_data(SHORT), prepare_data(replace(SHORT, trim_idle=None))
    assert json.dumps(a.processor.statistics) == json.dumps(b.processor.statistics)


def test_the_plan_and_the_run_say_what_is_left_out(capfd, tmp_path):
    told = prepare_data(SHORT).root.resting
    plan = plan_run(SHORT)
    assert plan.samples == prepare_data(SHORT).samples and told in str(plan)
    config = replace(SHORT, output_dir=str(tmp_path), max_steps=1)
    finetune(config)
    assert told in capfd.readouterr().out
    assert f"| at rest | {told} |" in (tmp_path / "README.md").read_text()


def test_a_run_goes_on_without_the_rest_and_no_other_way(tmp_path):
    once = finetune(replace(SHORT, output_dir=str(tmp_path / "once")))
    config = replace(SHORT, output_dir=str(tmp_path / "parts"))
    finetune(config, [AfterOne()])
    newest = newest_checkpoint(config.output_dir)
    for other in (None, 0.3):
        changed = replace(config, trim_idle=other)
        with pytest.raises(InputError, match=f"trim_idle was {REST}, now {other}\\)"):
            find_resume(prepare_data(changed).config, prepare_data(changed))
    moved = prepare_data(config)
    moved.root.kept[0] = range(9, 50)  # as where rows of the data set were changed in place
    with pytest.raises(InputError, match="the rows at rest that trim_idle leaves out differ"):
        find_resume(moved.config, moved)
    assert find_resume(prepare_data(config).config, prepare_data(config)) == newest
    again = finetune(config)
    assert [r["loss"] for r in again.log] == [r["loss"] for r in once.log]


def test_a_mixture_says_it_for_each_entry(tmp_path):
    entry = dict(dataset_path=RUN.dataset_path, embodiment_tag="NEW_EMBODIMENT",
                 modality_config_path=RUN.modality_config_path, exclude_episodes=FEW)
    file = tmp_path / "mixture.yaml"
    file.write_text(json.dumps(dict(arm=entry | dict(trim_idle=REST))))
    mixed = replace(RUN, dataset_path=None, embodiment_tag=None, modality_config_path=None, mixture=str(file))
    assert prepare_data(mixed).samples == prepare_data(SHORT).samples
    file.write_text(json.dumps(dict(arm=entry)))
    assert prepare_data(replace(mixed, trim_idle=REST)).samples == prepare_data(SHORT).samples


def test_where_all_is_at_rest_it_is_told_before_anything_is_loaded(tmp_path, monkeypatch, capfd):
    "Neither by a header that counts no step, nor with the advice to shorten the horizon."
    ds = prepare_data(SHORT).root.dataset
    monkeypatch.setattr(rest, "resting", lambda ds, config: {e: (ds.length(e), 0) for e in range(len(ds))})
    monkeypatch.setattr("gr00t_nb.training.finetune.write_experiment", None)
    config = replace(SHORT, output_dir=str(tmp_path / "run"))
    for work in (finetune, plan_run):
        with pytest.raises(InputError) as said: work(config)
        assert f"{ds.path} has no step to train on: trim_idle 0.1 leaves out all" in str(said.value)
        assert "of 4 episodes, since the robot rests there; give more seconds" in str(said.value)
    assert not capfd.readouterr().out and not (tmp_path / "run").exists()


def test_seconds_longer_than_any_rest_are_told_to_leave_out_nothing(capfd, tmp_path):
    config = replace(SHORT, output_dir=str(tmp_path), max_steps=1, trim_idle=100)
    assert prepare_data(config).samples == prepare_data(replace(SHORT, trim_idle=None)).samples
    told = "with all steps: trim_idle 100 leaves out none"
    assert told in str(plan_run(config))
    finetune(config)
    assert told in capfd.readouterr().out and told in (tmp_path / "README.md").read_text()


def test_features_are_kept_for_every_trim_idle(tmp_path, monkeypatch, capfd):
    "The first run looks at rest, too, and says so; the plan counts it; the second finds all that it needs."
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path / "cache"))
    config = replace(SHORT, cache_features=True, augment=False, max_steps=40, output_dir=str(tmp_path / "trimmed"))
    whole = replace(config, trim_idle=None, output_dir=str(tmp_path / "whole"))
    assert plan_run(config).features == plan_run(whole).features > 0
    every = prepare_data(whole).samples
    finetune(config)
    assert f"about {every} steps are looked at first, also at rest: another --trim-idle" in capfd.readouterr().out
    finetune(whole)
    assert "features: 4 episodes looked at before" in (said := capfd.readouterr().out) and "at first" not in said
