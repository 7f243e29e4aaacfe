"The sample's robot, and batches of it as training makes them."
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TAG = "new_embodiment"


def batch_of(family, checkpoint: Path, steps: list[dict], seed: int = 0, **law) -> dict:
    "A training batch of these steps, with everything that the family draws; law: as if configured so."
    processor, config = family.load_processor(checkpoint), family.read_config(checkpoint)
    for name, value in law.items(): setattr(config, name, value)
    rng = np.random.default_rng(0)  # of the images' augmentation
    batch = processor.collate([processor(s, TAG, training=True, rng=rng) for s in steps])
    return batch | family.draw_flow(config, range(len(steps)), seed, batch["action"].shape[1:])
