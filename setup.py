"Installs the package from `settings.ini`, which nbdev reads too: names, versions and ranges are written once."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser()
parser.read(Path(__file__).parent / "settings.ini")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    author=cfg["author"],
    license="Apache-2.0",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["pretrained/*/*", "pretrained/*/*/*"]},  # small models with weights
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={
        "aloha": ["gym-aloha==0.1.5"],
        "dev": cfg["dev_requirements"].split(),
        "hdf5": ["h5py>=3.12"],
        "lora": ["peft>=0.18"],
        "memory": ["torchao>=0.18"],
        "pusht": ["gym-pusht==0.1.8"],
        "tensorboard": ["tensorboard>=2.19"],
        "ur": ["ur_rtde>=1.6"],
        "wandb": ["wandb>=0.20"],
    },
    long_description=(
        (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
        if (Path(__file__).parent / "README.md").exists()
        else ""
    ),
    long_description_content_type="text/markdown",
)
