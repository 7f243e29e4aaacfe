"""GR00T N1.7's fine-tuning defaults, and the files that an official run leaves, in both of their layouts."""
import json
import shutil
from dataclasses import fields

import pytest

from gr00t_nb.checkpoints.registry import families, family_of
from gr00t_nb.families.n1d7_config import Gr00tN1d7Config
from gr00t_nb.settings.checks import resolved
from gr00t_nb.settings.config import FinetuneConfig

RUN = "run_files/finetune_run"
OWN = {"resume_from_checkpoint", "skip_weight_loading", "wandb_project", "output_dir"}  # told otherwise


@pytest.fixture(scope="module")
def family(): return next(f for f in families() if f.model_type == "Gr00tN1d7")


@pytest.fixture(scope="module")
def official(bundle): return json.loads(bundle("config_defaults.json").read_text())


def test_fine_tuning_defaults(family, official):
    "Every setting of the official launcher that is ours by that name, and what the launcher sets itself."
    asked, theirs = FinetuneConfig("tiny", "data", "new_embodiment"), official["FinetuneConfig"]
    ours = resolved(asked, family)
    common = {f.name for f in fields(FinetuneConfig)} & set(theirs)
    wanted = {k: theirs[k] for k in common - OWN if theirs[k] != "REQUIRED"}
    assert {k: getattr(ours, k) for k in wanted} == wanted and len(wanted) > 15
    assert family.defaults.wandb_project == theirs["wandb_project"]
    data, training = official["DataConfig"], official["TrainingConfig"]
    assert ours.override_statistics == data["override_pretraining_statistics"]
    assert ours.lr_scheduler == training["lr_scheduler_type"]
    assert family.defaults.max_grad_norm == training["max_grad_norm"]


def test_flags_are_the_class_defaults(family):
    assert family.flags == {k: getattr(Gr00tN1d7Config(), k) for k in family.flags}


def test_state_is_hidden_once(family):
    "By the network; the processor's own dropout, which officially comes on top, is off."
    assert family.defaults.state_dropout_prob > 0
    assert family.defaults.processor["state_dropout_prob"] == 0


def test_configuration_at_the_end_of_a_run(bundle):
    "Every value of final_model_config.json is a field, and has that value."
    said = json.loads(bundle(f"{RUN}/final_model_config.json").read_text())
    read = Gr00tN1d7Config.from_dict(said)
    assert set(read.extra) <= {"model_type"}
    assert {k: getattr(read, k) for k in said} == said
    saved = json.loads(bundle(f"{RUN}/checkpoint_config.json").read_text())
    kept = Gr00tN1d7Config.from_dict(saved)
    assert {k: getattr(kept, k) for k in said if k != "use_flash_attention"} == {
        k: v for k, v in said.items() if k != "use_flash_attention"
    }


@pytest.mark.parametrize("where", ["checkpoint-2", "."])
def test_both_layouts_load(family, bundle, tmp_path, where):
    "The folder of an official run: a checkpoint in it, and its top with `processor/`."
    checkpoint = bundle("policy/checkpoint")
    changed = {"config.json": "checkpoint_config.json", "processor_config.json": "processor_config.json"}
    for name in bundle(f"{RUN}/files.txt").read_text().split():
        place, file = tmp_path / name, name.rsplit("/", 1)[-1]
        source = checkpoint / file
        if file in changed: source = bundle(f"{RUN}/{changed[file]}")
        if not source.exists(): continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    folder = tmp_path / where
    shutil.copy(bundle("policy/qwen3vl_config.json"), folder / "qwen3vl_config.json")
    assert family_of(folder) is family
    model = family.load_model(folder)
    processor = family.processor_of(folder).from_pretrained(folder)
    limits, config = family.limits(folder), model.config
    assert limits["max_state_dim"] >= config.max_state_dim and processor.statistics
    assert (folder / "processor_config.json").exists() == (where != ".")
    assert sum(p.numel() for p in model.parameters()) > 1e6
