"""Models that the host's own TorchCompileModel has compiled, under nodes that take gradients."""

import pytest
import torch

from vidcore.systems.tune_a_video import load_tuned

from .prompts import keep_latent, node, sample
from .test_guide import guide
from .test_tune import apart, folder, nodes, tune  # noqa: F401


@pytest.fixture(scope="module")
def server(serve):
    """With the attention that the host takes on GPUs; its other one on CPUs breaks graphs, and compiles for minutes."""
    with serve("--use-pytorch-cross-attention") as running:
        yield running


def compiled(model, parts="diffusion_model"):
    return node("CompileModel", model=[model, 0], backend="aot_eager", parts=parts)


def test_a_compiled_model_is_tuned_as_a_plain_one(nodes, run, folder):  # noqa: F811
    """The whole network, and one block of it alone, as packs do that compile block by block."""
    nodes |= {"8": compiled("1"), "9": compiled("1", "diffusion_model.middle_block.1.transformer_blocks.0")}
    for number, name in (("1", "plain"), ("8", "whole"), ("9", "block")):
        nodes[f"7{number}"] = tune(model=[number, 0], name=name)
        nodes[f"6{number}"] = node("PreviewAny", source=[f"7{number}", 1])
    run(nodes, timeout=900)  # compiling takes long on a busy machine
    plain, *others = (load_tuned(folder / f"{name}_00001.safetensors")[0] for name in ("plain", "whole", "block"))
    for other in others:
        for a, b in zip(other.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    graphs, *breaks = run({"1": node("CompiledGraphs")})["outputs"]["1"]["text"]
    assert int(graphs) > 0 and not any("is_inference" in reason for reason in breaks)  # which tracing our copies would give


def test_a_patch_with_a_tensor_of_its_own_is_guided_as_on_a_plain_model(nodes, latents, server):  # noqa: F811
    """One made where no gradients can be recorded, which a compiled network meets unawares."""
    nodes["6"] = node("LatentFromBatch", samples=["4", 0], batch_index=0, length=2)
    nodes["7"] = node("ChangeSkips", model=["1", 0], in_place=False)
    nodes["8"] = compiled("7")
    for number, model in (("50", "7"), ("51", "8")):
        nodes[number] = guide(model=(model, 0), latent=["6", 0], frames="0, 1")
        nodes[f"8{number}"] = sample(model=(number, 0), latent=("4", 0), steps=2)
        nodes[f"9{number}"] = keep_latent(f"8{number}", f"latents/{number}")
    found = latents(nodes, timeout=900)
    assert apart(found["951"], found["950"]) < 1e-3
    assert "the model runs uncompiled" in server.log.read_text()  # for that is the case which is tested
