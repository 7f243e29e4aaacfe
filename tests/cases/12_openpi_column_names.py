"""Isaac-GR00T#437, lerobot#2529: columns called state, actions, image, wrist_image (openpi's
converters, published sets). The proposal must hold the state, or the check-up must say that it
lacks.
"""
import json

from case import checkup, end, read, sample, tables, write
from gr00t_nb.data.lerobot import LeRobotDataset
d = sample(2)
new = {
    "observation.state": "state",
    "action": "actions",
    "observation.images.front": "image",
    "observation.images.wrist": "wrist_image",
}
i = read(d / "meta/info.json")
i["features"] = {new.get(k, k): v for k, v in i["features"].items()}
write(d / "meta/info.json", i)
tables(d, lambda t: t.rename_columns([new.get(c, c) for c in t.column_names]))
(d / "meta/modality.json").unlink()
(d / "meta/episodes_stats.jsonl").unlink()
for a, b in new.items():
    if (p := d / "videos/chunk-000" / a).exists(): p.rename(d / "videos/chunk-000" / b)
p = LeRobotDataset(d).modality
problems = json.loads(checkup(d, "--json")[1])["problems"]
end(
    bool(p["state"]) or any("no state" in str(q) for q in problems),
    f"proposed: state {list(p['state'])}, action {list(p['action'])}, video {list(p['video'])}; the"
    " check-up asks to write that down and says nothing of the missing state",
)
