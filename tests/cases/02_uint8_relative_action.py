"""lerobot 8515d456b (uint8 overflow in statistics), sibling: hand positions stored as uint8, action
RELATIVE: the statistics must be those of signed differences.
"""
import numpy as np
import pyarrow as pa
from case import end, read, sample, tables, write
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.processing.statistics import relative_statistics
from gr00t_nb.modality_configs import ActionConfig, ActionRepresentation, ModalityConfig
d = sample(2)
def add(t):
    for src in ("observation.state", "action"):
        t = t.append_column(
            src + ".hand",
            pa.array(
                (np.array(t[src].to_pylist(), np.float32)[:, 6] * 255).clip(0, 255).astype(np.uint8)
            ),
        )
    return t
tables(d, add)
i, m = read(d / "meta/info.json"), read(d / "meta/modality.json")
for c, k in (("observation.state.hand", "state"), ("action.hand", "action")):
    i["features"][c] = {"dtype": "uint8", "shape": [1], "names": None}
    m[k]["hand"] = {"start": 0, "end": 1, "original_key": c}
write(d / "meta/info.json", i)
write(d / "meta/modality.json", m)
ds = LeRobotDataset(d)
C = dict(
    state=ModalityConfig([0], ["hand"]),
    action=ModalityConfig(
        range(16), ["hand"], action_configs=[ActionConfig(ActionRepresentation.RELATIVE)]
    ),
)
s = relative_statistics(ds, C)["hand"]
n = [ds.length(e) - 15 for e in (0, 1)]
true = np.concatenate([
    ds.action(e, ["hand"])["hand"][8 : 8 + n[e]] - ds.state(e, ["hand"])["hand"][: n[e]]
    for e in (0, 1)
])
end(
    abs(s["min"][8][0] - true.min()) < 1e-3 and abs(s["max"][8][0] - true.max()) < 1e-3,
    f"statistics say {s['min'][8][0]:g} to {s['max'][8][0]:g} at step 8 of the chunk, the"
    f" differences go from {true.min():g} to {true.max():g}",
)
