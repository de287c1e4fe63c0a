"""Workflows as people share them, run on a server."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from pathlib import Path

from .server import Server


class RunError(Exception):
    """ComfyUI refused or failed a workflow; the message is its own."""


def to_api(tools: Path, workflow: dict, object_info: dict) -> dict:
    """A workflow as people share it (UI format) in the form that the server runs, by comfy-cli's converter."""
    code = (
        "import json, sys; from comfy_cli.workflow_to_api import convert_ui_to_api; "
        "w, o = json.load(sys.stdin); json.dump(convert_ui_to_api(w, o), sys.stdout)"
    )
    done = subprocess.run(
        [str(tools), "-c", code],
        input=json.dumps([workflow, object_info]),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "DO_NOT_TRACK": "1", "PYTHONIOENCODING": "utf-8"},
    )
    if done.returncode:
        raise RunError("the workflow could not be converted: " + (done.stderr.strip().splitlines() or ["unknown error"])[-1])
    return json.loads(done.stdout)


def apply_settings(prompt: dict, settings: list[str]) -> None:
    """Change inputs in place by ``Node title.input=value``; the node may also be named by its type or number."""
    for setting in settings:
        where, equals, text = setting.partition("=")
        title, dot, name = where.rpartition(".")
        if not equals or not dot:
            raise RunError(f'--set takes "Node title.input=value", got {setting!r}')
        found = [
            node
            for number, node in prompt.items()
            if title in (number, node["class_type"], node.get("_meta", {}).get("title"))
        ]
        if len(found) != 1:
            titles = sorted({f"{n.get('_meta', {}).get('title') or n['class_type']}" for n in prompt.values()})
            what = "no node is" if not found else f"{len(found)} nodes are"
            raise RunError(f"--set {setting!r}: {what} called {title!r}; the workflow has: {', '.join(titles)}")
        inputs = found[0]["inputs"]
        if name not in inputs or isinstance(inputs[name], list):
            free = ", ".join(k for k, v in inputs.items() if not isinstance(v, list))
            raise RunError(f"--set {setting!r}: {title!r} has no value {name!r} to set; it has: {free}")
        old = inputs[name]
        try:
            inputs[name] = text if isinstance(old, str) else json.loads(text)
        except json.JSONDecodeError:
            raise RunError(f"--set {setting!r}: {name} is a {type(old).__name__} such as {old!r}, got {text!r}") from None


def refusal(answer: dict) -> str:
    """The server's reasons for not taking a prompt, one per line."""
    lines = [answer.get("error", {}).get("message", "refused")]
    for number, node in answer.get("node_errors", {}).items():
        for error in node["errors"]:
            lines.append(f"  {node['class_type']} ({number}): {error['message']} {error.get('details', '')}".rstrip())
    return "\n".join(lines)


def run_prompt(server: Server, prompt: dict, timeout: float = 3600) -> dict:
    """Queue a prompt, wait for it, and return its history entry.

    Raises:
        RunError: if the server refuses it, a node fails, it is interrupted, or the time is up.
    """
    status, answer = server.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
    if status != 200:
        raise RunError(refusal(answer))
    if answer.get("node_errors"):  # other branches of the workflow were good enough to be queued
        server.post("/queue", {"delete": [answer["prompt_id"]]})
        server.post("/interrupt", {"prompt_id": answer["prompt_id"]})
        raise RunError(refusal({"error": {"message": "a part of the workflow cannot run"}, **answer}))
    number, deadline = answer["prompt_id"], time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            history = server.get(f"/history/{number}").get(number)
            if history and history["status"].get("status_str"):
                for kind, event in history["status"].get("messages", []):
                    if kind == "execution_error":
                        where = f"{event['node_type']} ({event['node_id']})"
                        raise RunError(f"{where}: {event['exception_message'].strip()}")
                    if kind == "execution_interrupted":
                        raise RunError("interrupted")
                return history
            if server.process.poll() is not None:
                raise RunError(f"ComfyUI stopped while running:\n{server.tail()}")
            time.sleep(0.2)
    except KeyboardInterrupt:
        server.post("/interrupt", {})
        raise
    server.post("/interrupt", {})
    raise RunError(f"not done after {timeout:.0f} s")


def output_files(history: dict) -> list[dict]:
    """The files that a run wrote to the output folder, each as the history names it."""
    items = [i for node in history["outputs"].values() for v in node.values() if isinstance(v, list) for i in v]
    return [i for i in items if isinstance(i, dict) and i.get("type") == "output" and i.get("filename")]
