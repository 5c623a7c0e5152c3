"""What an installation needs: every import declared, every requirement pinned within its bounds, targets that
install once, modules that import without side effects."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
# Imported by the suite's code only where the user asked for them by an extra.
OPTIONAL = {"xformers"}


@pytest.fixture(scope="module")
def setup_arguments() -> dict[str, Any]:
    """What setup.py tells setuptools."""
    seen: dict[str, Any] = {}
    original, folder = setuptools.setup, Path.cwd()
    setuptools.setup = lambda **arguments: seen.update(arguments)
    try:
        os.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = original
        os.chdir(folder)
    return seen


def pins() -> dict[str, Version]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        content = line.partition("#")[0].strip()
        if content:
            requirement = Requirement(content)
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


def imports_of(source: str) -> set[str]:
    """Top-level packages that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_import_is_declared(setup_arguments: dict[str, Any]) -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in setup_arguments["install_requires"]}
    distributions = packages_distributions()
    undeclared = {}
    for path in [*ROOT.glob("promptist/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        for name in imports_of(path.read_text("utf-8")) - set(sys.stdlib_module_names) - OPTIONAL:
            # PyYAML comes with omegaconf, whose file format it is.
            owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
            if name not in {"promptist", "jobs", "yaml"} and not owners & declared:
                undeclared[name] = str(path.relative_to(ROOT))
    assert undeclared == {}


def test_requirements_are_pinned_within_their_bounds(setup_arguments: dict[str, Any]) -> None:
    extras = setup_arguments["extras_require"]
    pinned = pins()
    for text in [*setup_arguments["install_requires"], *extras["local"], *extras["test"]]:
        requirement = Requirement(text)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_tested_versions_are_the_installed_ones(setup_arguments: dict[str, Any]) -> None:
    """`make test` proves something about constraints.txt only where its versions run."""
    from importlib.metadata import version

    pinned = pins()
    for text in setup_arguments["install_requires"]:
        name = Requirement(text).name
        assert Version(version(name).partition("+")[0]) == pinned[canonicalize_name(name)], name


def test_packages_hold_what_runs(setup_arguments: dict[str, Any]) -> None:
    packages = set(setup_arguments["packages"])
    assert {"promptist", "jobs", "promptist.cluster", "promptist.synthetic"} <= packages
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("promptist/**/*.py")}
    missing = {folder for folder in folders if str(folder).replace("/", ".") not in packages}
    assert missing == set(), "a folder without __init__.py is left out of the wheel"


def make(*arguments: str, venv: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-n", f"VENV={venv}", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    ).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_installs_once(tmp_path: Path) -> None:
    fresh = make("test", venv=tmp_path)
    assert "-m venv" in fresh
    assert len(re.findall(r"pip .*install", fresh)) == 3  # the environment and two oracles
    oracles = [f"oracles/{name}/.installed" for name in ("transformers-4.56.2", "trl-0.11.4")]
    for stamp in [".installed", ".installed-test", *oracles, "bin/pip"]:
        (tmp_path / stamp).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stamp).touch()
    for target in ("demo", "test", "check"):
        assert not re.search(r"pip .*install|-m venv", make(target, venv=tmp_path)), target
        for changed in ("setup.py", "constraints.txt"):
            assert re.search(r"pip .*install", make("-W", changed, target, venv=tmp_path)), (changed, target)


def test_importing_starts_nothing() -> None:
    """No module of the suite initialises MPI, torch.distributed or CUDA when it is imported."""
    probe = """
import importlib, pkgutil, sys
import jobs, promptist
for package in (promptist, jobs):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import torch
assert "mpi4py.MPI" not in sys.modules, "MPI"
assert not torch.distributed.is_initialized(), "torch.distributed"
assert not torch.cuda.is_initialized(), "CUDA"
"""
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_address_of_one_site_is_kept() -> None:
    """Package indexes and paths of one machine belong to the user's pip configuration, not here."""
    for name in ("setup.py", "constraints.txt", "Makefile", ".ci/run", "pyproject.toml"):
        text = (ROOT / name).read_text("utf-8")
        assert not re.search(r"index-url|find-links|https?://|file://", text), name
