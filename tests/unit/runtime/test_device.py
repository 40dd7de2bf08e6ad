"""Which device `hardware.device` means, with and without CUDA."""

from __future__ import annotations

import pytest
import torch

from distwsss.errors import ConfigError
from distwsss.runtime.device import pick_device


@pytest.fixture
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is CUDA, as parametrized."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


with_cuda = pytest.mark.parametrize("cuda", [True], indirect=True)
without_cuda = pytest.mark.parametrize("cuda", [False], indirect=True)


@with_cuda
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_with_cuda_it_is_the_first_gpu(name: str, cuda: None) -> None:
    assert pick_device(name) == torch.device("cuda", 0)


@with_cuda
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_rank_has_a_gpu_of_its_own(name: str, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device(name) == torch.device("cuda", 3)


@with_cuda
def test_the_cpu_is_taken_where_it_is_named(cuda: None) -> None:
    assert pick_device("cpu") == torch.device("cpu")


@without_cuda
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_cuda_it_is_the_cpu(name: str, cuda: None) -> None:
    assert pick_device(name) == torch.device("cpu")


@without_cuda
def test_cuda_without_one_is_an_error(cuda: None) -> None:
    with pytest.raises(
        ConfigError, match=r"`hardware\.device`\): found 'cuda', but this machine offers none; allowed: auto or cpu"
    ):
        pick_device("cuda")
