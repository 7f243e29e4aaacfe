"""lerobot#3467 (7ab4936b1): tables with language_persistent, a list of structs. Read without noise:
no warning that tells to write good tables again.
"""
import json

import pyarrow as pa
from case import checkup, end, read, sample, tables, write
from gr00t_nb.data.language import read_instruction
from gr00t_nb.data.lerobot import LeRobotDataset
d = sample(2)
i = read(d / "meta/info.json")
i["features"]["language_persistent"] = {"dtype": "language", "shape": [1], "names": None}
write(d / "meta/info.json", i)
cell = [{"role": "user", "content": "reach", "style": "subtask", "timestamp": 0.0, "camera": None}]
tables(d, lambda t: t.append_column("language_persistent", pa.array([cell] * len(t))))
rc, out, err = checkup(d)
told = [p for p in json.loads(checkup(d, "--json")[1])["problems"] if p["severity"] != "info"]
text = read_instruction(LeRobotDataset(d), 0, 0, "annotation.human.task_description")
end(
    rc == 0 and text and not told,
    f"exit {rc}, instruction '{text}', told:"
    f" {[(p['kind'], p['fix']) for p in told[:1]] or 'nothing'}",
)
