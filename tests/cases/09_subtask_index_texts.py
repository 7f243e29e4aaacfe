"""lerobot b18cef2e2: subtask_index points into meta/subtasks.parquet. An annotation that names this
column must give subtasks, or be refused; never texts of meta/tasks.
"""
import pyarrow as pa
import pyarrow.parquet as pq
from case import end, read, sample, tables, v3, write
from gr00t_nb.data.language import read_instruction
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError
d = v3(sample(2), [[0, 1]], {c: [[0, 1]] for c in ("front", "wrist")})
tables(
    d, lambda t: t.append_column("subtask_index", pa.array([i % 100 // 50 for i in range(len(t))]))
)
pq.write_table(
    pa.table({"subtask_index": [0, 1], "__index_level_0__": ["reach for the cube", "lower it"]}),
    d / "meta/subtasks.parquet",
)
i, m = read(d / "meta/info.json"), read(d / "meta/modality.json")
i["features"]["subtask_index"] = {"dtype": "int64", "shape": [1], "names": None}
m["annotation"]["human.subtask"] = {"original_key": "subtask_index"}
write(d / "meta/info.json", i)
write(d / "meta/modality.json", m)
try:
    got = read_instruction(LeRobotDataset(d), 0, 0, "annotation.human.subtask")
    end(got == "reach for the cube", f"step 0 is told '{got}', its subtask is 'reach for the cube'")
except InputError as e:
    end("subtask" in str(e), str(e))
