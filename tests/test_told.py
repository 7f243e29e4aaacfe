"What users meet at the command line: an error in a callback, episodes that were trained on, words of --help."
import dataclasses
import importlib
import re
import warnings
from pathlib import Path

import pytest
from preloaded import python
from runs import ROBOT, ROOT, RUN, SAMPLE

from gr00t_nb.checkpoints.base_models import pretrained_bases, tiny_base
from gr00t_nb.checkpoints.registry import families
from gr00t_nb.errors import InputError
from gr00t_nb.evaluation import open_loop
from gr00t_nb.replay.graphs import ActionGraphs
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.settings.recipe import robot_to_json
from gr00t_nb.training.finetune import finetune
from gr00t_nb.training.prepare import prepare_data

CALLBACK = '''from transformers import TrainerCallback

class Counts(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        self.seen = {}["steps"]

callbacks = [Counts()]
'''


def test_an_error_in_a_callback_is_told_with_its_line(tmp_path):
    (tmp_path / "mine.py").write_text(CALLBACK)
    more = dict(hooks=str(tmp_path / "mine.py"), output_dir=str(tmp_path / "run"))
    done = python("scripts/finetune.py", *dataclasses.replace(RUN, **more).to_flags())
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = f"hooks.callbacks ended with KeyError: 'steps', in {tmp_path / 'mine.py'}, line 5"
    assert said in done.stderr and 'self.seen = {}["steps"]' in done.stderr


def test_episodes_that_were_trained_on_are_told(tmp_path, capsys):
    "Not of a run that held some out, and not of episodes of another data set."
    asked = ["--dataset-path", str(SAMPLE), "--steps", "20", "--device", "cpu"]
    told = {}
    for share in (0.0, 0.05):
        run = finetune(dataclasses.replace(RUN, output_dir=str(tmp_path / str(share)), max_steps=1, val_fraction=share))
        words = ["--model-path", str(run.output_dir), *asked]
        if not share: words += ["--traj-ids", "0", "3"]
        capsys.readouterr()
        open_loop.main(words)
        told[share] = capsys.readouterr().out
    assert "All of the 2 episodes that are asked about were trained on" in told[0.0]
    assert "were trained on" not in told[0.05] and "held-out episodes" in told[0.05]


def test_a_command_that_accelerates_tells_the_same(tmp_path, capsys, monkeypatch):
    "Along a recording, with --accelerate and without; no shape is given up."
    prepared = prepare_data(dataclasses.replace(RUN, output_dir=str(tmp_path)))
    folder = tmp_path / "policy"
    prepared.family.save(folder, prepared.family.load_model(tiny_base()), prepared.processor)
    words = ["--model-path", str(folder), "--dataset-path", str(SAMPLE), "--traj-ids", "0", "--steps", "64"]
    told, replayed, answer = {}, [], ActionGraphs.__call__
    monkeypatch.setattr(ActionGraphs, "__call__", lambda g, *a, **how: replayed.append(g) or answer(g, *a, **how))
    for more in ([], ["--accelerate"]):
        with warnings.catch_warnings(action="error"): open_loop.main([*words, "--device", "cpu", *more])
        told[len(replayed) > 0] = capsys.readouterr().out
    assert "policy" in told[True] and told[True] == told[False]
    assert all(r.played for r in replayed[-1].recordings.values())


NAMES = [f.tiny_name for f in families()]  # before a test registers one of its own


def test_help_names_what_there_is():
    said = " ".join(python("scripts/finetune.py", "--help").stdout.replace("│", " ").split())
    for word in (*NAMES, *pretrained_bases(), "'tiny'", ".json", "linear-warmup+cosine-decay"):
        assert word in said, word


COMMANDS = [
    str(p.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for p in sorted(ROOT.glob("gr00t_nb/*/*.py"))
    if "\n@command\ndef main(" in p.read_text() and p.stem != "finetune"  # which is a script
]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_begins_with_what_one_types_and_what_the_command_does(module, monkeypatch, capsys):
    "Nor does it speak of Python's None where a flag is left out."
    monkeypatch.setattr("sys.argv", ["somewhere", "--help"])
    with pytest.raises(SystemExit) as end: importlib.import_module(module).main()
    usage, *said = capsys.readouterr().out.split("\n\n")
    assert not end.value.code and " ".join(usage.split()).startswith(f"usage: python -m {module} ")
    assert not re.search(r"\bNone:|told of its|Command line of this", "".join(said))


def windows(out: Path, **more) -> FinetuneConfig:
    "A run whose samples are windows, as FluxVLA makes them."
    recipe = dict(name="own", base="tiny-n1.5", robots=dict(arm=dict(cameras=["observation.images.front"])))
    told = dict(dataset_path=str(SAMPLE), output_dir=str(out), global_batch_size=2, max_steps=1)
    return FinetuneConfig(recipe=recipe, **told | more)


def test_nvidias_order_of_windows_is_refused_before_anything_is_written(tmp_path):
    wrong = windows(tmp_path / "run", sampling="official", check_data=False)
    with pytest.raises(InputError, match="leave --sampling official out"): finetune(wrong)
    assert not (tmp_path / "run").exists()


def test_no_episode_is_too_short_for_windows(tmp_path):
    "Every row begins one, so the check-up does not advise to leave the episode out."
    recipe = dict(windows(tmp_path).known_recipe.robots)["arm"]
    long = dataclasses.replace(recipe, chunk=500)
    whole = dict(name="own", base="tiny-n1.5", robots=dict(arm=robot_to_json(long)))
    prepared = prepare_data(FinetuneConfig(recipe=whole, dataset_path=str(SAMPLE), max_steps=1))
    assert prepared.samples > 3000 and not [w for w in prepared.warnings if "horizon" in w]


@pytest.mark.parametrize("field", ["output_dir", "modality_config_path", "base_model_path", "hooks"])
def test_a_path_may_begin_at_home(monkeypatch, tmp_path, field):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert getattr(FinetuneConfig(**{field: "~/mine"}), field) == str(tmp_path / "mine")


@pytest.mark.parametrize("more,words", [
    (dict(tune_vlln=True), "GR00T N1.5 has no flag tune_vlln"),
    (dict(tune_top_llm_layers=2), "GR00T N1.5 has no flag tune_top_llm_layers"),
    (dict(mask_padding=True), "GR00T N1.5 has no mask_padding"),
    (dict(dataset_path=f"{SAMPLE}:"), "have an empty part"),
    (dict(embodiment_tag="libero_sim"), "'libero_sim' is a tag of GR00T N1.7"),
])
def test_what_a_generation_lacks_is_refused_before_anything_is_written(tmp_path, more, words):
    known = dict(modality_config_path=None if "embodiment_tag" in more else str(ROBOT))
    told = dict(base_model_path="tiny-n1.5", output_dir=str(tmp_path / "run")) | known | more
    with pytest.raises(InputError, match=words): finetune(dataclasses.replace(RUN, **told))
    assert not (tmp_path / "run").exists()


def test_flags_of_one_generation_train_and_are_the_same_on_resume(tmp_path):
    own = dict(base_model_path="tiny-n1.7", output_dir=str(tmp_path / "run"), save_steps=1, max_steps=1)
    own |= dict(tune_top_llm_layers=1, tune_vlln=False, mask_padding=True)
    run = finetune(dataclasses.replace(RUN, **own))
    config = run.prepared.family.read_config(run.output_dir)
    assert (config.tune_top_llm_layers, config.tune_vlln, config.mask_padding) == (1, False, True)
    with pytest.raises(InputError, match="mask_padding was True, now None"):
        finetune(dataclasses.replace(RUN, **own | dict(mask_padding=None, max_steps=2)))
    assert finetune(dataclasses.replace(RUN, **own | dict(max_steps=2))).log[-1]["step"] == 2


UNFIT = '''from gr00t_nb.embodiments import register_modality_config
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig

relative = [ActionConfig("RELATIVE"), ActionConfig("ABSOLUTE")]
register_modality_config(dict(
    video=ModalityConfig([0], ["frnt", "wrist"]),
    state=ModalityConfig([0], ["single_arn", "gripper"]),
    action=ModalityConfig(range(16), ["single_arm", "gripper"], action_configs=relative),
    language=ModalityConfig([0], ["annotation.human.task_description"]),
))
'''
SAID = (
    "Action 'single_arm' of 'new_embodiment' is relative to the state group 'single_arm'",
    "no video 'frnt'", "Did you mean 'front'?", "no state 'single_arn'",
)


@pytest.fixture
def unfit(tmp_path):
    "A robot with a wrong relative group, and with names that the data set does not have."
    (tmp_path / "robot.py").write_text(UNFIT)
    return str(tmp_path / "robot.py")


def test_all_faults_of_a_run_are_told_in_one_round(tmp_path, unfit):
    "Of its settings, of its robot, and of robot and data set together; nothing is written or registered."
    wrong = dict(modality_config_path=unfit, global_batch_size=0, learning_rate=-1.0, output_dir=str(tmp_path / "run"))
    done = python("scripts/finetune.py", *dataclasses.replace(RUN, **wrong).to_flags())
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "run").exists()
    for words in (*SAID, "global_batch_size is 0: expected at least 1.", "learning_rate is -1.0: expected"):
        assert done.stderr.count(words) == 1, (words, done.stderr)
    assert "4 faults. (1) " in done.stderr


def test_all_faults_of_a_robot_are_told_by_the_check_up(unfit):
    done = python("-m", "gr00t_nb.checkup.checkup", str(SAMPLE), "--modality-config-path", unfit)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for words in SAID: assert done.stderr.count(words) == 1, (words, done.stderr)


def test_neither_checkpoint_nor_data_set(tmp_path):
    "Both are told, before a weight is read."
    words = ["--model-path", str(tmp_path / "a"), "--dataset-path", str(tmp_path / "b"), "--device", "cpu"]
    done = python("-m", "gr00t_nb.evaluation.open_loop", *words)
    assert done.returncode == 2 and "There is no checkpoint folder at" in done.stderr
    assert f"There is no folder {tmp_path / 'b'}" in done.stderr
