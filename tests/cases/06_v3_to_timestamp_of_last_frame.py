"""A published v3.0 set (github yipiandanxinxiangyangkai/open_50): to_timestamp is the time of the
last frame, (length - 1) / fps; the mp4 holds a frame for every row. It must be read, and the
check-up must not claim a missing frame.
"""
import json

from case import checkup, end, look_the_same, sample, TMP, v3
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError
def last_frame(R):
    for r in R:
        for k in [k for k in r if k.endswith("to_timestamp")]: r[k] -= 1 / 20
d2 = sample(2)
d = v3(d2, [[0], [1]], {c: [[0], [1]] for c in ("front", "wrist")}, last_frame)
rc, out, err = checkup(d)
kinds = [p["kind"] for p in json.loads(checkup(d, "--json")[1])["problems"]]
try:
    ok = look_the_same(LeRobotDataset(d2), LeRobotDataset(d))
    said = "frames compared"
except InputError as e:
    ok, said = False, str(e).replace(str(TMP), "")
end(ok and "video_short" not in kinds, f"check-up: {sorted(set(kinds))}; reading: {said}")
