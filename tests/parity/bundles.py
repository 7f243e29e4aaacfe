"Where the parity bundles lie, for tests that make one case of each entry they find."
import json
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]


GENERATIONS = ("n1d7", "n1d6", "n1d5")  # folders of tests here, and of bundles in ../shared/reference


def reference_root(config, generation: str = "n1d6") -> Path:
    "Folder of the bundles: `--reference`, or `../shared/reference/GENERATION` beside the checkout. It may not exist."
    beside = ROOT.parent / "shared" / "reference" / generation
    return Path(config.getoption("--reference") or beside).resolve()


def generation_of(root: Path) -> str:
    "Whose numbers a folder holds: a bundle of N1.5 has several tiny models, each in a folder of its own."
    if any(root.glob("tiny_model/*/config.json")): return "n1d5"
    config = root / "tiny_model/config.json"
    return "n1d7" if config.exists() and "Gr00tN1d7" in config.read_text() else "n1d6"


def json_of(config, name: str, default=None, generation: str = "n1d6"):
    "A JSON file of the bundles, or `default` where it is absent: for use at collection time."
    path = reference_root(config, generation) / name
    return json.loads(path.read_text()) if path.exists() else default


def tensor_names(config, name: str, generation: str = "n1d6") -> list[str]:
    "Names of the tensors in a file of the bundles, none where it is absent: for use at collection time."
    path = reference_root(config, generation) / name
    if not path.exists(): return []
    with safe_open(path, "np") as file: return list(file.keys())
