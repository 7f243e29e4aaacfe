"Where the parity bundles lie, for tests that make one case of each entry they find."
import json
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]


def reference_root(config) -> Path:
    "Folder of the bundles: `--reference`, or `../shared/reference/n1d6` beside the checkout. It may not exist."
    return Path(
        config.getoption("--reference") or ROOT.parent / "shared" / "reference" / "n1d6"
    ).resolve()


def json_of(config, name: str, default=None):
    "A JSON file of the bundles, or `default` where it is absent: for use at collection time."
    path = reference_root(config) / name
    return json.loads(path.read_text()) if path.exists() else default


def tensor_names(config, name: str) -> list[str]:
    "Names of the tensors in a file of the bundles, none where it is absent: for use at collection time."
    path = reference_root(config) / name
    if not path.exists(): return []
    with safe_open(path, "np") as file: return list(file.keys())
