"""Installs m3ae_scale: `pip install -c constraints.txt .` gives the tested versions, `pip install .` what fits."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "m3ae_scale" / "version.py").read_text())[1]
README = HERE / "README.md"

# The lower bound is the oldest release whose interface the code uses; an upper bound stands where the next major
# (or, for DeepSpeed and Megatron-core, which change their insides freely, minor) release has yet to be tried.
RUNTIME = [
    "torch>=2.10",  # torch.nn.attention.varlen
    "deepspeed>=0.19.8,<0.20",
    "megatron-core>=0.16,<0.17",
    "mlflow>=3.7,<4",
    "pydantic>=2.6,<3",
    "pyyaml>=6",
    "numpy>=1.26",
    "tokenizers>=0.20",
    "safetensors>=0.4.3",
    "pillow>=10.3",
    "simplejpeg>=1.8",
    "fsspec>=2024.2",
    "braceexpand>=0.1.7",
    "filelock>=3.12",
    "xxhash>=3.4",
    "click>=8.2",
    "rich>=13.7",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "scikit-learn>=1.4",
    "ninja",  # builds DeepSpeed's operations on first use
]

EXTRAS = {
    # Faster kernels, each found at run time and used when it is there. NVIDIA Apex is another such backend, but it
    # is built from its source: the package of that name on the index is something else, so it is never listed.
    "gpu": ["flash-attn>=2.7"],
    "s3": ["s3fs>=2024.2"],
    "convert": ["h5py>=3.10", "pyarrow>=15"],
}
EXTRAS["dev"] = [
    *EXTRAS["s3"],
    *EXTRAS["convert"],
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "webdataset>=1.0,<2",  # what our shards must be readable by, and what the loader is measured against
    "moto[server]>=5",  # an S3 server for the tests
    "transformers>=5,<6",  # what exported encoders must be readable by
    "ruff>=0.9",
    "mypy>=1.14",
    "import-linter>=2.1",
    "types-PyYAML",
]

setup(
    name="m3ae_scale",
    version=VERSION,
    description="The Multimodal Masked Autoencoder, from a laptop to tens of billions of parameters",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    packages=find_packages(include=["m3ae_scale", "m3ae_scale.*"]),
    package_data={"m3ae_scale": ["py.typed", "**/*.html", "**/*.j2", "**/*.txt"]},
    # Experiments, DeepSpeed JSONs and batch scripts travel with the wheel, so that a bare name is found.
    data_files=[
        (f"share/m3ae_scale/{folder.relative_to(HERE)}", [str(f.relative_to(HERE)) for f in sorted(folder.glob("*.*"))])
        for folder in (
            HERE / "configs",
            HERE / "configs" / "ds",
            HERE / "configs" / "paper",
            HERE / "configs" / "claims",
            HERE / "configs" / "claims" / "scales",
            HERE / "configs" / "throughput",
            HERE / "configs" / "scaling",
            HERE / "slurm",
        )
    ],
    python_requires=">=3.10",
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["m3ae-scale = m3ae_scale.cli.main:program"]},
)
