"Where the parity bundles lie, for tests that make one case of each entry they find."
import json
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]


GENERATIONS = ("n1d7", "n1d6", "n1d5")  # folders of tests here, and of bundles in ../shared/reference


def reference_root(config, generation: str = "n1d6") -> Path:
    """Folder of the bundles: `--reference`, or in it that of the generation where it holds several, or
    `../shared/reference/GENERATION` beside the checkout. It may not exist."""
    given = config.getoption("--reference")
    if given and not any((Path(given) / g).is_dir() for g in GENERATIONS): return Path(given).resolve()
    return (Path(given or ROOT.parent / "shared" / "reference") / generation).resolve()


def given(config) -> dict[str, Path]:
    "Generation -> folder of its bundles, of those that `--reference` gives; none without it."
    if not config.getoption("--reference"): return {}
    roots = {g: reference_root(config, g) for g in GENERATIONS}
    if len({*roots.values()}) == 1: return {generation_of(root): root for root in roots.values()}
    return {g: root for g, root in roots.items() if root.is_dir()}


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
