"The sample, its robot, and a short run on it: what many tests vary."
from pathlib import Path

from gr00t_nb.settings.config import FinetuneConfig

ROOT = Path(__file__).resolve().parents[1]
SAMPLE, ROBOT = ROOT / "data_samples/cube_to_bowl", ROOT / "data_samples/cube_to_bowl_config.py"
RUN = FinetuneConfig(
    "tiny",
    str(SAMPLE),
    "NEW_EMBODIMENT",
    str(ROBOT),
    check_data=False,
    global_batch_size=2,
    max_steps=3,
    save_steps=100,
    logging_steps=1,
    dataloader_num_workers=0,
)
