"""What a reader in Colab is told."""

import pytest
import torch

from descent.repro.machine import colab_report


@pytest.mark.parametrize("gpu", ["", "Tesla T4"])
def test_the_report_names_the_cores_and_what_a_gpu_computes(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("DESCENT_DEVICE", raising=False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    said = colab_report()
    assert "on the CPU, 2 cores" in said
    assert ("The GPU, Tesla T4, trains transformers" in said) == bool(gpu)
    assert "minutes" in said
