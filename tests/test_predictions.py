"""The viewer of predictions on a real humanoid's data set.

It has 29 dimensions in five groups, one camera, and instructions that are not spotless.
"""
from pathlib import Path

import numpy as np
import pytest

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics
from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.errors import InputError
from gr00t_nb.families.n1d6 import Gr00tN1d6
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.evaluation.asking import short_names
from gr00t_nb.evaluation.predictions import HOLD, Predictions
from gr00t_nb.checkpoints.base_models import resolve_base_model
from gr00t_nb.plots.style import save_figure
from gr00t_nb.viz.prediction_viewer import PredictionViewer
from gr00t_nb.viz.prediction_figures import plot_prediction

ROOT = Path(__file__).resolve().parents[1]
DATASET = ROOT.parent / "shared" / "reference" / "datasets" / "gr1.PickNPlace"
pytestmark = pytest.mark.skipif(
    not DATASET.exists(), reason=f"the data set gr1.PickNPlace is not at {DATASET}"
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Gr00tPolicy:
    "A policy of the small size with random weights, which knows the humanoid's groups and statistics."
    folder, base = tmp_path_factory.mktemp("gr1"), resolve_base_model("tiny")
    config, processor = MODALITY_CONFIGS["gr1"], Gr00tProcessor.from_pretrained(base)
    processor.set_embodiment("gr1", config, embodiment_statistics(LeRobotDataset(DATASET), config))
    processor.save_pretrained(folder)
    Gr00tN1d6.from_pretrained(base).save_pretrained(folder)
    return Gr00tPolicy("GR1", folder, device="cpu")


@pytest.fixture
def viewer(policy):
    ds = LeRobotDataset(DATASET)
    shown = PredictionViewer(
        {"random weights": policy}, ds, episode=2, step=100, samples=2, survey=False
    )
    yield shown
    shown.cameras.store.close()


def test_many_dimensions(viewer):
    p, chosen = viewer.predictions, viewer.chosen
    groups = ["left_arm", "right_arm", "left_hand", "right_hand", "waist"]
    assert p.width == 29 and list(p.columns) == groups
    reach = np.ptp(p.truth(2), axis=0)
    assert len(chosen) == 12 and min(reach[chosen]) >= np.sort(reach)[-12]  # those that move most
    assert viewer.which.value == "moving most"
    assert viewer.prompt.value == p.instruction(2, 100) != ""
    viewer.which.value = "waist"
    waist = [s for n, s in zip(p.names(), short_names(p.names())) if n.startswith("waist")]
    assert [a.get_title(loc="left") for a in viewer._fan.fan.axes] == waist
    assert len(viewer.chosen) == 3
    viewer.episode.value = 4
    assert viewer.length == LeRobotDataset(DATASET).length(4)
    assert viewer.facts.value.count("error") == 2  # of the policy, and of holding the state


def test_survey(policy, tmp_path):
    p = Predictions({"random weights": policy}, LeRobotDataset(DATASET), samples=2)
    list(p.survey(4, stride=100))
    error = p.errors("random weights", 4)
    assert np.isfinite(error).sum() == len(range(0, p.dataset.length(4), 100))
    assert np.nanmean(error) > np.nanmean(p.errors(HOLD, 4))  # random weights are worse than holding still
    page = plot_prediction(p, 4, 100, dims="right_arm", strip=False)
    assert save_figure(page, tmp_path / "gr1.png").stat().st_size > 20_000


def test_another_robot_is_refused(policy):
    with pytest.raises(InputError) as refused:
        Predictions(policy, ROOT / "data_samples" / "cube_to_bowl")
    lines = str(refused.value).splitlines()
    assert "does not fit" in lines[0] and all(w in lines[0] for w in ("video", "state", "action"))
    row = next(line for line in lines if "left_arm (7)" in line).split()
    assert row == ["state", "!", "left_arm", "(7)", "single_arm", "(6)"]  # wanted, beside what there is
