"Where the parity bundles lie; importable by tests that make one case of each entry they find (`pytest_generate_tests`)."
import json
from pathlib import Path

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
