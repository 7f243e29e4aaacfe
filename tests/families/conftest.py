"One suite over every registered family, and over one that is registered only while these tests run."
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from batches import ROOT, TAG, batch_of
from dummy import DUMMY

from gr00t_nb.data.steps import read_steps
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.checkpoints.registry import families, register, unregister
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics


def pytest_collection_modifyitems(config, items):
    """What the engine does alike for whatever it trains (`@pytest.mark.engine`) is shown with the first
    family and the dummy, or with the one that its mark names. One that is another with other eyes (a
    class made from its class) is held to test_conformance alone. A new family is tried once with
    --all-families."""
    if config.getoption("--all-families"): return
    shown = dict(first=families()[0], dummy=DUMMY)

    def is_left(item) -> bool:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if family is None: return False
        if engine := item.get_closest_marker("engine"):
            return family not in [shown[name] for name in engine.args or shown]
        made_from = {type(f) for f in families()} & {*type(family).__mro__[1:]}
        return bool(made_from) and item.path.name != "test_conformance.py"

    left = [i for i in items if is_left(i)]
    items[:] = [i for i in items if i not in left]
    config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="package", autouse=True)
def dummy():
    "The dummy is known while these tests run."
    yield register(DUMMY)
    unregister(DUMMY.model_type)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="package", params=[*families(), DUMMY], ids=lambda f: f.tiny_name)
def family(request): return request.param


@pytest.fixture(scope="package")
def sample() -> SimpleNamespace:
    "The data set of the sample, its robot and some steps of it."
    load_modality_config(ROOT / "data_samples" / "cube_to_bowl_config.py")
    robot = MODALITY_CONFIGS.pop(TAG)
    data = LeRobotDataset(ROOT / "data_samples" / "cube_to_bowl")
    steps = [s for e in (0, 1) for s in read_steps(data, e, [0, 20, 40], robot)]
    return SimpleNamespace(data=data, robot=robot, steps=steps)


@pytest.fixture(scope="package")
def base(family, tmp_path_factory) -> Path:
    "The family's tiny checkpoint."
    folder = tmp_path_factory.mktemp(family.tiny_name) / "base"
    family.save_tiny(folder)
    return folder


@pytest.fixture(scope="package")
def checkpoint(family, base, sample, tmp_path_factory) -> Path:
    "The same, knowing the sample's robot."
    folder = tmp_path_factory.mktemp(family.tiny_name) / "checkpoint"
    processor = family.load_processor(base)
    processor.set_embodiment(TAG, sample.robot, embodiment_statistics(sample.data, sample.robot))
    family.save(folder, family.load_model(base), processor)
    return folder


@pytest.fixture
def batch(family, checkpoint, sample) -> dict:
    "A training batch, with everything that the family draws."
    return batch_of(family, checkpoint, sample.steps)


@pytest.fixture
def policy(checkpoint) -> Gr00tPolicy:
    return Gr00tPolicy(TAG, checkpoint, device="cpu", round_inputs=False)
