"A real humanoid's data set, as it is: 20 steps with the tag GR1, nothing written into its folder."
import hashlib
from pathlib import Path

import pytest

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


@pytest.mark.skipif(not DATASET.exists(), reason=f"the data set gr1.PickNPlace is not at {DATASET}")
def test_trains(tmp_path):
    before = digest(DATASET)
    config = FinetuneConfig(
        "tiny",
        str(DATASET),
        "GR1",
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
    assert set(result.prepared.processor.statistics) == {"gr1"}
    for name in ("model.safetensors", "statistics.json"):
        assert (tmp_path / "checkpoint-20" / name).exists()
