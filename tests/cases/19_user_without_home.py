"""Containers with an arbitrary user id (OpenShift, rootless): no HOME, no entry in passwd. Fine-
tuning must run, or say which variable to set. (Needs user namespaces.)
"""
import os
import subprocess
import sys

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
    "1",
    "--global-batch-size",
    "2",
    "--dataloader-num-workers",
    "0",
    "--output-dir",
    str(TMP / "out"),
]
env = {
    k: v for k, v in os.environ.items() if k not in ("HOME", "GR00T_NB_CACHE", "USER", "LOGNAME")
}
r = subprocess.run(
    ["unshare", "--user", "--map-user=12345", "--map-group=12345", *job],
    capture_output=True,
    text=True,
    timeout=400,
    env={**env, "PYTHONPATH": str(ROOT)},
    cwd=TMP,
)
end(
    r.returncode == 0 or "Traceback" not in r.stderr and "GR00T_NB_CACHE" in r.stderr,
    f"exit {r.returncode}: {last(r.stderr)}",
)
