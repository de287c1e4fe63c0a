"""The real page in a real browser: the template opens, runs, and its video shows."""

import json
import os
import time
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: run `python3 start.py test`")

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
READY = "() => !!(window.app && app.graph && window.LiteGraph && LiteGraph.registered_node_types['SampleVideo'])"


@pytest.fixture(scope="module")
def page(server):
    browser_path = os.environ.get("VIDCORE_BROWSER")
    if not browser_path:
        pytest.skip("needs Chromium or Chrome; please install one")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.goto(server.url)
        page.wait_for_function(READY, timeout=60_000)
        yield page
        browser.close()


def test_the_template_browser_lists_our_workflow_with_its_picture(page, server, screenshots):
    """On a fresh profile the page opens its templates by itself; ours are under the pack's name."""
    shipped = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert sorted(server.get("/workflow_templates")["ComfyUI-VidCore"]) == shipped
    page.get_by_text("ComfyUI-VidCore", exact=True).first.click(timeout=20_000)
    card = page.get_by_text("text_to_video", exact=True).first
    card.wait_for(timeout=20_000)
    page.wait_for_function("() => [...document.images].some(i => i.naturalWidth === 512)", timeout=20_000)
    page.screenshot(path=screenshots / "templates.png")
    card.click()
    page.wait_for_function("() => app.graph._nodes.some(n => n.type === 'SampleVideo')", timeout=20_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=screenshots / "workflow.png")


def test_nothing_is_missing_and_values_are_where_they_belong(page):
    nodes = page.evaluate("() => app.graph._nodes.map(n => [n.type, n.type in LiteGraph.registered_node_types])")
    assert len(nodes) == 10 and all(known for _, known in nodes)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    sampler = next(n["inputs"] for n in prompt.values() if n["class_type"] == "SampleVideo")
    assert (sampler["sampler"], sampler["schedule"], sampler["steps"]) == ("ddim", "uniform_time", 50)
    loader = next(n["inputs"] for n in prompt.values() if n["class_type"] == "LoadVideoModel")
    assert loader["model_name"] == "shapes-vdm.safetensors"


def test_run_makes_a_video_that_plays_in_the_page(page, screenshots):
    started = time.monotonic()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("video", state="attached", timeout=240_000)
    page.wait_for_function(
        "() => { const v = document.querySelector('video');"
        " return v && v.readyState >= 2 && v.videoWidth === 512 && v.duration > 0.9 }",
        timeout=30_000,
    )
    page.screenshot(path=screenshots / "result.png")
    print(f"from Run to a playing video: {time.monotonic() - started:.1f} s")


def test_the_help_page_of_a_node_opens(page, server):
    answer = page.request.get(f"{server.url}/extensions/ComfyUI-VidCore/docs/SampleVideo.md")
    assert answer.ok and "`guidance_scale`" in answer.text()


def test_a_broken_prompt_is_explained_in_the_page(page, screenshots):
    page.evaluate("() => { app.graph._nodes.find(n => n.title === 'Prompt').widgets[0].value = 'a zebra' }")
    page.keyboard.press("Control+Enter")
    page.get_by_text("View details").click(timeout=60_000)
    page.get_by_text("does not know: zebra").first.wait_for(timeout=20_000)
    page.screenshot(path=screenshots / "error.png")


# Title, and corners with the title bar, of each node as it stands in the page, in the graph's own units.
BOXES = """(modern) => app.graph._nodes.map((n) => {
    const name = n.title + ' ' + n.id, [left, top] = [n.pos[0], n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT];
    if (!modern) return [name, left, top, left + n.size[0], n.pos[1] + n.size[1]];
    const box = document.querySelector(`[data-node-id="${n.id}"]`).getBoundingClientRect(), scale = app.canvas.ds.scale;
    return [name, left, top, left + box.width / scale, top + box.height / scale];
})"""


def overlapping(page, modern):
    boxes = page.evaluate(BOXES, modern)
    return [
        (a[0], b[0])
        for i, a in enumerate(boxes)
        for b in boxes[i + 1 :]
        if max(a[1], b[1]) < min(a[3], b[3]) and max(a[2], b[2]) < min(a[4], b[4])
    ]


def fit(page):
    """Brings every node into sight; those out of it are not laid out."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1000)


def show(page, path):
    page.evaluate("async (graph) => { await app.loadGraphData(graph) }", json.loads(path.read_text(encoding="utf-8")))
    page.wait_for_timeout(500)
    fit(page)


@pytest.mark.parametrize("modern", [False, True], ids=["classic", "nodes 2.0"])
def test_nodes_of_our_workflows_stand_apart(page, screenshots, modern):
    """In both looks that the page has; in one workflow also when previews and videos have made its nodes taller."""
    page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", modern)
    page.keyboard.press("Escape")
    found = {}
    for path in sorted((ROOT / "workflows").glob("*.json")):
        show(page, path)
        found[path.stem] = overlapping(page, modern)
    assert {name: pairs for name, pairs in found.items() if pairs} == {}

    show(page, ROOT / "workflows" / "motion_transfer.json")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelectorAll('video').length === 2", timeout=240_000)
    page.wait_for_timeout(2000)
    fit(page)
    page.screenshot(path=screenshots / f"previews_{'modern' if modern else 'classic'}.png")
    assert overlapping(page, modern) == []
