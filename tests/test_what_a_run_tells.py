"What a run says and leaves about itself: one run with everything switched on."
import gzip
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.errors import InputError
from gr00t_nb.runs.run_folder import checkpoints
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune

SAMPLE = Path(__file__).resolve().parents[1] / "data_samples"
EVENTS = find_spec("tensorboard") is not None
CONFIG = FinetuneConfig(
    "tiny",
    str(SAMPLE / "cube_to_bowl"),
    "NEW_EMBODIMENT",
    str(SAMPLE / "cube_to_bowl_config.py"),
    check_data=False,
    exclude_episodes=[*range(3, 40)],
    val_fraction=0.34,
    max_epochs=2,
    global_batch_size=64,
    micro_batch_size=16,
    lr_scheduler="step",
    lr_decay_steps=2,
    lr_decay_factor=0.5,
    warmup_ratio=0.0,
    logging_steps=1,
    dataloader_num_workers=0,
    use_tensorboard=EVENTS,
    use_wandb=True,
    profile=True,
)


@pytest.fixture(autouse=True)
def no_robot_stays():
    yield
    MODALITY_CONFIGS.pop("new_embodiment", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told") / "run"
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setattr("builtins.print", lambda *x, **how: said.append(" ".join(map(str, x))))
        result = finetune(replace(CONFIG, output_dir=str(folder)))
    import wandb
    wandb.finish()
    return SimpleNamespace(folder=folder, said="\n".join(said), result=result, log=result.log)


def test_epochs_are_steps_with_a_checkpoint_at_each_end(run):
    samples = run.result.prepared.samples
    ends = [-(-k * samples // 64) for k in (1, 2)]
    assert run.result.prepared.config.max_steps == ends[-1] == run.log[-1]["step"]
    assert [c.name for c in checkpoints(run.folder)] == [f"checkpoint-{s}" for s in ends]


def test_the_header(run):
    counts = run.result.prepared.family.count_parameters(run.result.model)
    for words in (
        "2 episodes of", "(1 held out)", "one process on", "float32", "so 2 epochs", "step / 2",
        f"DiT {counts['DiT'][0] / 1e6:.3g} M", "frozen: vision tower", str(run.folder),
    ): assert words in run.said, (words, run.said)
    assert len(run.said.split("\nstep ")[0].splitlines()) <= 12


def test_each_part_has_its_gradient_and_the_rate_falls(run):
    for row in run.log:
        parts = [v for k, v in row.items() if k.startswith("grad_norm/")]
        assert len(parts) >= 4
        assert sum(v * v for v in parts) ** 0.5 == pytest.approx(row["grad_norm"], rel=1e-3)
    rates = [r["learning_rate"] / 1e-4 for r in run.log]
    assert rates == pytest.approx([0.5 ** (i // 2) for i in range(len(rates))])


def test_the_profile_is_a_trace_and_a_table(run):
    assert f"profile: 3 steps are recorded in {run.folder / 'trace.json.gz'}" in run.said
    trace = json.loads(gzip.decompress((run.folder / "trace.json.gz").read_bytes()))
    names = [e.get("name", "") for e in trace["traceEvents"]]
    assert sum(n.startswith("Optimizer.step#") for n in names) == 3
    assert "aten::" in (run.folder / "profile.txt").read_text()


@pytest.mark.skipif(not EVENTS, reason="needs tensorboard")
def test_tensorboard_has_the_logs_numbers(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for name in ("loss", "learning_rate", "grad_norm/DiT", "forward_ms"):
        written = {e.step: e.value for e in events.Scalars(name)}
        assert written == pytest.approx({r["step"]: r[name] for r in run.log}), name


def test_wandb_writes_offline(run):
    file, = (run.folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for words in (b"learning_rate", b"cube_to_bowl", b"global_batch_size"): assert words in content


def test_what_is_missing_is_said(run, monkeypatch):
    monkeypatch.setattr("gr00t_nb.runs.tensorboard.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        finetune(replace(CONFIG, output_dir=str(run.folder) + "-2", use_tensorboard=True))
    assert not Path(str(run.folder) + "-2").exists()
