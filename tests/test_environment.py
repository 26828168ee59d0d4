"""What is said to the libraries below, before they are imported."""

from __future__ import annotations

import os
import subprocess

import pytest

from azneobert import environment
from azneobert.environment import SPINS, is_busy, quiet_barriers


@pytest.mark.parametrize(("busy", "spins"), [(False, str(SPINS)), (True, "0")])
def test_threads_spin_as_long_as_the_machine_leaves_them_cores(
    busy: bool, spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(environment, "is_busy", lambda: busy)
    quiet_barriers()
    assert os.environ["GOMP_SPINCOUNT"] == spins


def test_a_person_s_own_setting_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setattr(environment, "is_busy", lambda: pytest.fail("asked for nothing"))
    quiet_barriers()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_a_machine_on_which_each_core_works_for_others_is_busy() -> None:
    cores = len(os.sched_getaffinity(0))
    others = [subprocess.Popen(["sha256sum", "/dev/zero"], stdout=subprocess.DEVNULL) for _ in range(cores)]
    try:
        assert is_busy(0.5)
    finally:
        for other in others:
            other.kill()
            other.wait()
