"""pytorch#5040 and every container with Docker's 64 MB of /dev/shm: loader processes cannot hand over
their batches. The run must stop, with a sentence, not hang. (Needs root or user namespaces.)
"""
import os
import shlex
import subprocess
import sys
import time

from case import CONFIG, end, last, ROOT, sample, TMP
d = sample(1)
job = [
    sys.executable,
    str(ROOT / "scripts/finetune.py"),
    "--base-model-path",
    "tiny",
    "--dataset-path",
    str(d),
    "--embodiment-tag",
    "NEW_EMBODIMENT",
    "--modality-config-path",
    str(CONFIG),
    "--max-steps",
    "2",
    "--global-batch-size",
    "16",
    "--dataloader-num-workers",
    "2",
    "--output-dir",
    str(TMP / "out"),
]
err = open(TMP / "err.txt", "w")
inside = f"mount -t tmpfs -o size=256k tmpfs /dev/shm && exec {shlex.join(job)}"
p = subprocess.Popen(
    [
        "unshare",
        *([] if os.getuid() == 0 else ["--user", "--map-root-user"]),
        "--mount",
        "bash",
        "-c",
        inside,
    ],
    stdout=subprocess.DEVNULL,
    stderr=err,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    start_new_session=True,
)
start, failed = time.time(), None
while p.poll() is None and time.time() - start < 600 and (failed is None or time.time() - failed < 60):
    time.sleep(1)
    if failed is None and "shared memory" in (TMP / "err.txt").read_text(): failed = time.time()
said, hung = (TMP / "err.txt").read_text(), p.poll() is None
if hung: os.killpg(p.pid, 9)
p.wait()
how = "60 s after its loader failed the run still waits" if hung else f"exit {p.returncode}"
end(not hung and (p.returncode == 0 or "Traceback" not in said), f"{how}: {last(said)}")
