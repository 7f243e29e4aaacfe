"A real humanoid's data set, as it is: some steps with the tag of each generation, nothing written into its folder."
import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch

from preloaded import python
from runs import RUN
from safetensors.torch import load_file

from gr00t_nb.checkpoints.base_models import resolve_base_model
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATASET = SHARED / "reference" / "datasets" / "gr1.PickNPlace"


def digest(folder: Path) -> str:
    h = hashlib.sha256()
    for p in sorted(folder.rglob("*")):
        h.update(f"{p.relative_to(folder)} {p.stat().st_mtime_ns}".encode())
        if p.is_file(): h.update(p.read_bytes())
    return h.hexdigest()


HERE = pytest.mark.skipif(not DATASET.exists(), reason=f"the data set gr1.PickNPlace is not at {DATASET}")


@HERE
@pytest.mark.parametrize("base,tag", [("tiny", "GR1"), ("tiny-n1.7", "ROBOCASA_GR1_TABLETOP")])
def test_trains(tmp_path, base, tag):
    before = digest(DATASET)
    config = FinetuneConfig(
        base,
        str(DATASET),
        tag,
        tune_llm=True,
        tune_visual=True,
        max_steps=20,
        global_batch_size=8,
        logging_steps=5,
        learning_rate=1e-3,
        dataloader_num_workers=1,
        output_dir=str(tmp_path),
    )
    result = finetune(config)
    assert digest(DATASET) == before
    assert [r["step"] for r in result.log] == [5, 10, 15, 20]
    assert result.log[-1]["loss"] < result.log[0]["loss"]
    assert set(result.prepared.processor.statistics) == {tag.lower()}
    # the files that it ships are of other data: told where they are used, and only there
    told = [w for w in result.prepared.warnings if "beyond min and max" in w]
    assert bool(told) == (tag == "GR1"), result.prepared.warnings
    for name in ("model.safetensors", "statistics.json"):
        assert (tmp_path / "checkpoint-20" / name).exists()


SETS = {"the sample": {}, "gr1": dict(
    dataset_path=str(DATASET), embodiment_tag="ROBOCASA_GR1_TABLETOP", modality_config_path=None
)}


@pytest.mark.parametrize("name", list(SETS))
def test_two_processes_learn_what_one_learns(tmp_path, name):
    "N1.7, whose prompts are padded in a batch: without padding in its self-attention, and without dropout."
    if name == "gr1" and not DATASET.exists(): pytest.skip(f"the data set is not at {DATASET}")
    more = dict(base_model_path="tiny-n1.7", max_steps=2, global_batch_size=4, mask_padding=True)
    more |= dict(dropout=0.0, state_dropout_prob=0.0, warmup_ratio=0.0, learning_rate=1e-3)
    weights = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        config = dataclasses.replace(RUN, **more | SETS[name] | dict(output_dir=str(out)))
        done = python("scripts/finetune.py", *config.to_flags(), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append(load_file(out / "model.safetensors"))
    base = load_file(resolve_base_model("tiny-n1.7") / "model.safetensors")
    moved = [k for k in base if not torch.equal(base[k].float(), weights[0][k].float())]
    assert len(moved) > 20
    far = lambda a, b: sum((a[k].double() - b[k].double()).abs().sum() for k in moved)
    assert far(*weights) < 0.02 * far(weights[0], base)
