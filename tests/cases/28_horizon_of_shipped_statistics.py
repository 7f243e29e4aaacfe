"""Isaac-GR00T#546 and 4c0662f: meta/relative_stats.json of a horizon of 8 (and with a
__fingerprints__ entry) beside a configuration of 16 steps. Computed anew, with a word about it.
"""
import numpy as np
from case import CONFIG, end, finetune, read, sample, TMP, write
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.processing.statistics import relative_statistics
from gr00t_nb.embodiments import load_modality_config, MODALITY_CONFIGS
d = sample(2)
load_modality_config(CONFIG)
s = relative_statistics(LeRobotDataset(d), MODALITY_CONFIGS["new_embodiment"])
write(
    d / "meta/relative_stats.json",
    {g: {k: v[:8] for k, v in e.items()} for g, e in s.items()}
    | {"__fingerprints__": {"single_arm": "sha256:0"}},
)
rc, out, err = finetune(d, TMP / "out")
got = (
    np.array(
        read(TMP / "out/statistics.json")["new_embodiment"]["relative_action"]["single_arm"]["max"]
    )
    if rc == 0
    else np.zeros(0)
)
end(
    rc == 0
    and got.shape == (16, 6)
    and np.allclose(got, s["single_arm"]["max"])
    and "relative_stats.json" in err,
    f"exit {rc}, statistics {got.shape}, told: {'relative_stats.json' in err}",
)
