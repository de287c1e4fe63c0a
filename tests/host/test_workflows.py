"""The workflows that ship, in the form that people share, through the converter and a real run."""

import json
from pathlib import Path

import pytest

import start
from vidcore.data.shapes import Scene, Thing
from vidcore.metrics.tracker import agreement, observe
from vidcore.video import probe, read_frames

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_every_workflow_has_a_picture_notes_and_known_nodes(path, server):
    assert path.with_suffix(".jpg").stat().st_size > 2000
    workflow, known = json.loads(path.read_text(encoding="utf-8")), server.get("/object_info")
    kinds = [node["type"] for node in workflow["nodes"]]
    assert "MarkdownNote" in kinds
    assert [k for k in kinds if k not in known and k != "MarkdownNote"] == []


def render(server, tools, output, name, *settings):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = start.to_api(tools, workflow, server.get("/object_info"))
    start.apply_settings(prompt, list(settings))
    (item,) = start.output_files(start.run_prompt(server, prompt))
    return output(item)


def test_text_to_video_shows_what_its_prompt_says(server, tools, output):
    """For the prompt that ships; how often any other agrees is a figure of the model's card."""
    path = render(server, tools, output, "text_to_video")
    info = probe(path)
    assert (info.frames, info.height, info.width, float(info.rate)) == (8, 512, 512, 8.0)
    clip = read_frames(path)[:, 8::16, 8::16].numpy() / 255  # back to the model's 32 x 32
    found = agreement(clip, Scene((Thing("circle", "red", "large", "left"),), "dark blue"))
    assert all(found.values()), f"{found}: {observe(clip)}"


def test_settings_change_the_video(server, tools, output):
    path = render(
        server,
        tools,
        output,
        "text_to_video",
        "Prompt.text=a large green square over a black background",
        "Sample Video.steps=20",
    )
    seen = observe(read_frames(path)[:, 8::16, 8::16].numpy() / 255)
    assert seen.background == "black" and {t.colour for t in seen.things} == {"green"}
