"""Isaac-GR00T#546's kin: two pictures, two states, a chunk that begins one step ahead, every second
step. Trained and evaluated with the right rows.
"""
import numpy as np
from case import CONFIG, end, finetune, last, run, sample, TMP
d = sample(2)
c = TMP / "robot.py"
t = CONFIG.read_text()
t = (
    t.replace(
        '"video": ModalityConfig(delta_indices=[0]', '"video": ModalityConfig(delta_indices=[-4, 0]'
    )
    .replace(
        '"state": ModalityConfig(delta_indices=[0]', '"state": ModalityConfig(delta_indices=[-1, 0]'
    )
    .replace("list(range(16))", "list(range(1, 17, 2))")
)
c.write_text(t)
rc, out, err = finetune(d, TMP / "out", config=c)
if rc: end(False, f"exit {rc}: {last(err)}")
rc, out, err = run(
    "-m",
    "gr00t_nb.evaluation.open_loop",
    "--model-path",
    TMP / "out",
    "--dataset-path",
    d,
    "--traj-ids",
    0,
    "--steps",
    40,
)
from gr00t_nb.embodiments import load_modality_config, MODALITY_CONFIGS
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_step
load_modality_config(c)
ds = LeRobotDataset(d)
s = read_step(ds, 0, 20, MODALITY_CONFIGS["new_embodiment"])
a = ds.action(0)["gripper"]
right = (
    np.array_equal(s["action.gripper"], a[21:37:2])
    and np.array_equal(s["state.gripper"], ds.state(0)["gripper"][19:21])
    and np.array_equal(s["video.front"], ds.frames(0, "front", [16, 20]))
)
end(rc == 0 and right, f"open loop exit {rc}, rows right: {right}")
