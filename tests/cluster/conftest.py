"""The SLURM that the cluster tests submit to. Each worker of pytest-xdist has its own, on its own ports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import testbed

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[testbed.Cluster]:
    """A cluster of four nodes; skips with the reason where this host cannot have one."""
    reason = testbed.missing()
    if reason:
        pytest.skip(f"no SLURM testbed: {reason}")
    with testbed.Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _left_as_found(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cancels the jobs that a test has left, and brings back the nodes that it took down."""
    if "slurm" not in request.fixturenames:
        yield
        return
    cluster = request.getfixturevalue("slurm")
    before = cluster.queued()
    yield
    cluster.clear(keep=before)


@pytest.fixture
def slurm_environ(slurm: testbed.Cluster, monkeypatch: pytest.MonkeyPatch) -> testbed.Cluster:
    """`slurm`, and this process itself talks to it: for code that calls sbatch or squeue in the test's process."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    return slurm
