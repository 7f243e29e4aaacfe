"The policy that notebooks share: trained by the first who asks, once, and again when the sources change."
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / "nbs/_shared_policy.py"
TRAINS = """
import json, sys, time
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--output-dir") + 1])
(run / "experiment_cfg").mkdir(parents=True)
with open("trained", "a") as log: log.write("once ")
time.sleep(1)  # the others ask meanwhile
(run / "experiment_cfg/finetune.json").write_text("{}")
(run / "model.safetensors").touch()
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    "A checkout whose training takes a second and learns nothing."
    files = {"gr00t_nb/model/dit.py": "1", "gr00t_nb/viz/player.py": "1"}
    files |= {"scripts/finetune.py": TRAINS, "data_samples/cube_to_bowl_config.py": ""}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def asks(checkout: Path) -> subprocess.Popen:
    code = (
        "import pathlib, runpy, sys\n"
        "shared_policy = runpy.run_path(sys.argv[1])['shared_policy']\n"
        "print(shared_policy(root=pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(SHARED), str(checkout)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_trained_once(checkout):
    shared_policy = runpy.run_path(SHARED)["shared_policy"]
    first, second = asks(checkout), asks(checkout)
    folders = {p.communicate()[0].strip() for p in (first, second)}
    assert folders == {str(shared_policy(root=checkout))}
    assert (checkout / "trained").read_text() == "once "
    (checkout / "gr00t_nb/viz/player.py").write_text("2")  # training does not use it
    assert {str(shared_policy(root=checkout))} == folders
    (checkout / "gr00t_nb/model/dit.py").write_text("2")
    assert {str(shared_policy(root=checkout))} != folders
    assert (checkout / "trained").read_text() == "once once "


def test_the_base_counts(checkout):
    "Other weights to begin with are another policy."
    key = runpy.run_path(SHARED)["_sources_key"]
    before, weights = key(checkout), checkout / "gr00t_nb/pretrained/tiny-cubes/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"practised")
    assert key(checkout) != before


def test_demo_comes_first(checkout):
    shared_policy, demo = runpy.run_path(SHARED)["shared_policy"], checkout / "outputs/demo"
    (demo / "experiment_cfg").mkdir(parents=True)
    (demo / "model.safetensors").touch()
    assert shared_policy(root=checkout) != demo  # it was not finished
    (demo / "experiment_cfg/finetune.json").write_text(json.dumps({}))
    assert shared_policy(root=checkout) == demo
    assert shared_policy(demo=False, root=checkout) != demo


def test_failure_is_told(checkout):
    (checkout / "scripts/finetune.py").write_text("raise SystemExit('no data set')")
    with pytest.raises(RuntimeError, match="could not be trained:\nno data set"):
        runpy.run_path(SHARED)["shared_policy"](root=checkout)
