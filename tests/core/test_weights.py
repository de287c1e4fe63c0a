import pytest
import torch
from safetensors.torch import save_file

from vidcore import weights

INFO = {"system": "vdm", "note": "ä"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.safetensors"
    weights.save(path, {"net.a": torch.arange(1000.0), "text.b": torch.ones(2, 3).half()}, INFO)
    return path


def test_round_trip_keeps_bits_types_and_description(file):
    tensors, info = weights.load(file)
    assert info == INFO == weights.read_info(file)
    assert torch.equal(tensors["net.a"], torch.arange(1000.0)) and tensors["text.b"].dtype == torch.float16
    assert list(weights.part(tensors, "net.")) == ["a"]
    assert list(weights.load(file, "text.")[0]) == ["b"]


@pytest.mark.parametrize("keep", [0, 4, 100, 2000])
def test_a_file_cut_short_is_refused(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(weights.WeightsError, match="m.safetensors is not a readable safetensors file"):
        weights.load(file)


def test_other_files_are_refused_each_with_its_reason(tmp_path):
    with pytest.raises(weights.WeightsError, match="no such file"):
        weights.read_info(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no model at all" * 10)
    with pytest.raises(weights.WeightsError, match="not a readable safetensors"):
        weights.read_info(tmp_path / "text.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(weights.WeightsError, match="not a readable safetensors"):
        weights.read_info(tmp_path / "pickle.safetensors")
    save_file({"model.diffusion_model.x": torch.ones(1)}, tmp_path / "sd.safetensors", {"format": "pt"})
    with pytest.raises(weights.WeightsError, match="not a vidcore model.*Load Checkpoint"):
        weights.read_info(tmp_path / "sd.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "bad.safetensors", {"vidcore": "{not json"})
    with pytest.raises(weights.WeightsError, match="not a vidcore model"):
        weights.read_info(tmp_path / "bad.safetensors")


def test_a_failed_save_leaves_the_old_file(file):
    before = file.read_bytes()
    with pytest.raises(TypeError):
        weights.save(file, {"net.a": torch.ones(1)}, {"system": object()})
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_tensors_that_do_not_fit_are_named():
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(weights.WeightsError, match=r"the test weights.*missing bias; unexpected other; weight is \(3, 4\)"):
        weights.load_into(layer, {"weight": torch.ones(3, 4), "other": torch.ones(1)}, "test")
    with pytest.raises(weights.WeightsError, match="missing weight"):
        weights.check(torch.nn.Linear(2, 3, device="meta"), {"bias": torch.ones(3)}, "test")
