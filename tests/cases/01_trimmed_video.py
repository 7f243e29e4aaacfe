"""torchcodec#1502/1504, cosmos-framework#201: an mp4 cut with `ffmpeg -ss T -c copy` keeps an edit
list; every player shows it right. Single frames must be those that players show, or be refused
with a true reason.
"""
import subprocess

import numpy as np
from case import end, SAMPLE, TMP
from gr00t_nb.data.video import decode_frames
from gr00t_nb.errors import InputError
subprocess.run(
    [
        "ffmpeg",
        "-y",
        "-loglevel",
        "error",
        "-ss",
        "0.25",
        "-i",
        str(SAMPLE / "videos/chunk-000/observation.images.front/episode_000000.mp4"),
        "-c",
        "copy",
        str(TMP / "cut.mp4"),
    ],
    check=True,
)
raw = subprocess.run(
    [
        "ffmpeg",
        "-loglevel",
        "error",
        "-i",
        str(TMP / "cut.mp4"),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-fps_mode",
        "passthrough",
        "-",
    ],
    capture_output=True,
).stdout
seen = np.frombuffer(raw, np.uint8).reshape(-1, 240, 320, 3).astype(int)  # what a player shows
wrong, refused, asked = [], [], range(len(seen))
for k in asked:
    try: x = decode_frames(TMP / "cut.mp4", [k])[0].astype(int)
    except InputError as e:
        refused.append(str(e))
        continue
    if np.abs(x - seen[k]).mean() > 0.5:
        wrong.append((k, int(np.argmin([np.abs(x - s).mean() for s in seen])) - k))
try:
    decode_frames(TMP / "cut.mp4")
    whole = "can be read"
except InputError as e:
    whole = str(e)[-140:]
end(
    not wrong and not any("damaged" in r for r in [whole, *refused]),
    f"{len(wrong)} of {len(asked)} frames read singly are other pictures than a player shows"
    f" (frame, pictures too late): {wrong[:4]}, {len(refused)} refused; all frames at once:"
    f" {whole}",
)
