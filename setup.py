"""Packaging of the suite. Lower bounds are what the code needs, upper bounds the next release that may break
it; the exact versions that the tests ran with are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "promptist/__init__.py").read_text(), re.M).group(1)

INSTALL_REQUIRES = [
    "torch>=2.10,<3",  # one lower bound for CPU and GPU: xformers 0.0.35 needs 2.10
    "deepspeed>=0.19.5,<0.20",  # two ZeRO engines in one process; its internals move between minors
    "transformers>=5.0,<6",  # GPT-2 with the Cache classes; 4.x has other cache and tokenizer interfaces
    "tokenizers>=0.22,<1",  # byte-level BPE of the miniature world is trained with it
    "huggingface_hub>=1.0,<3",  # `promptist prefetch` and the look into its cache; transformers brings it anyway
    "diffusers>=0.42,<0.43",  # Stable Diffusion pipeline; the attention interface changes between minors
    "open_clip_torch>=3.3,<4",  # pretrained tag `openai` knows that it needs QuickGELU from 3.x on
    "timm>=1.0.17",  # open_clip's image towers, the ImageNet-21k lemma list
    "submitit>=1.5.3,<2",  # submission from Python: part of the suite, not used before jobs/submit.py exists
    "mpi4py>=4.1,<5",  # first wheels; they bring no MPI library: the cluster's, or the extra `local`
    "omegaconf>=2.3,<3",  # typed configs from dataclasses
    "msgpack>=1.0,<2",  # messages between training and reward ranks
    "safetensors>=0.4",  # weights on disk without pickle
    "tensorboard>=2.15",  # metrics while a job runs
    "pyarrow>=15",  # rollouts and evaluation records as parquet
    "matplotlib>=3.8",  # plots of the report
    "jinja2>=3.1,<4",  # template of the report, escapes what users wrote
    "scikit-learn>=1.4",  # fits the linear aesthetic head of the miniature world
    "pillow>=10",  # pictures
    "numpy>=2.0,<3",  # a float32 array times a Python float stays float32, scalars included (NEP 50)
    "scipy>=1.15",  # paired tests and intervals; bootstrap(rng=) appeared in 1.15
    "krippendorff>=0.9,<1",  # agreement of human raters; takes value counts, and may change its interface until 1.0
    "tqdm>=4.60",  # progress bars of long trainings
]

EXTRAS_REQUIRE = {
    # An MPI library as a wheel: laptops and CI need no system package. A cluster has its own MPI.
    "local": ["mpich>=5.0,<6"],
    # Memory-efficient attention of the paper's configs on NVIDIA GPUs (reward.diffusion.attention=xformers).
    "xformers": ["xformers>=0.0.35,<0.1"],
    "test": [
        "pytest>=9,<10",  # faulthandler_exit_on_timeout
        "pytest-xdist>=3.6,<4",  # two workers, one file stays on one worker
        "hypothesis>=6.100",  # properties of pure functions
        "nltk>=3.9,<4",  # oracle of self-BLEU; reads no data files
        "playwright>=1.55,<2",  # drives the system's Chromium through report and rating page; downloads none
        "ruff>=0.17,<0.18",  # rules change between minors
        "mypy>=2.4,<3",
        "types-PyYAML",
    ],
}

setup(
    name="promptist",
    version=VERSION,
    description="Promptist (Hao et al., NeurIPS 2023) as an HPC batch suite: SFT, PPO and evaluation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",  # diffusers 0.42 needs it
    packages=find_packages(include=["promptist", "promptist.*", "jobs"]),
    package_data={
        "promptist.synthetic": ["assets/**"],
        "promptist.humaneval": ["page/*"],
        "promptist.evaluation": ["assets/*"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["promptist = promptist.cli:main"]},
)
