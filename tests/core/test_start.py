"""The set-up's own logic; what it sets up is tested by every test in host/."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import start
from launch import setup
from launch.prompt import RunError, apply_settings
from launch.server import HERE, PACK, link_pack


def prompt():
    return {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["9", 1], "text": "old"}, "_meta": {"title": "Prompt"}},
        "2": {"class_type": "SampleVideo", "inputs": {"seed": 1, "scale": 2.5}, "_meta": {"title": "Sample Video"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}, "_meta": {"title": "Negative"}},
    }


def test_settings_reach_their_input_with_its_type():
    found = prompt()
    apply_settings(found, ["Prompt.text=a = b. c", "Sample Video.seed=7", "2.scale=3"])
    assert found["1"]["inputs"]["text"] == "a = b. c"
    assert found["2"]["inputs"] == {"seed": 7, "scale": 3}


@pytest.mark.parametrize(
    "setting, message",
    [
        ("nonsense", "--set takes"),
        ("Promt.text=x", "no node is called 'Promt'; the workflow has: Negative, Prompt, Sample Video"),
        ("CLIPTextEncode.text=x", "2 nodes are called"),
        ("Prompt.txt=x", "no value 'txt' to set; it has: text"),
        ("Prompt.clip=x", "no value 'clip' to set"),
        ("Sample Video.seed=many", "seed is a int such as 1, got 'many'"),
    ],
)
def test_wrong_settings_say_what_there_is(setting, message):
    with pytest.raises(RunError, match=message):
        apply_settings(prompt(), [setting])


def archive(path, names):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            data = b"content of " + name.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fake_download(monkeypatch, names, digest=None):
    def run_step(what, command, **_):
        folder = Path(command[command.index("--dest") + 1])
        found = archive(folder / "pack-1.tar.gz", names)
        monkeypatch.setattr(setup, "HOST_SHA256", digest or found)

    monkeypatch.setattr(setup, "run_step", run_step)


def test_only_the_host_is_unpacked_and_the_old_tree_is_replaced(tmp_path, monkeypatch):
    fake_download(monkeypatch, ["pack/setup.py", "pack/vendor/ComfyUI/main.py", "pack/vendor/ComfyUI/comfy/a.py"])
    (tmp_path / "comfyui").mkdir()
    (tmp_path / "comfyui" / "old.py").touch()
    setup.fetch_host(tmp_path, tmp_path / "comfyui")
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [os.path.join("comfyui", "comfy", "a.py"), os.path.join("comfyui", "main.py")]


def test_a_download_with_another_hash_is_deleted_and_nothing_unpacked(tmp_path, monkeypatch):
    fake_download(monkeypatch, ["pack/vendor/ComfyUI/main.py"], digest="0" * 64)
    with pytest.raises(setup.SetupError, match="expected 0000.*damaged or was tampered"):
        setup.fetch_host(tmp_path, tmp_path / "comfyui")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_leaves_the_folder_is_refused(tmp_path, monkeypatch):
    fake_download(monkeypatch, ["pack/vendor/ComfyUI/main.py", "pack/vendor/ComfyUI/../../../evil.py"])
    with pytest.raises(setup.SetupError, match="outside its folder"):
        setup.fetch_host(tmp_path, tmp_path / "comfyui")
    assert not (tmp_path / "comfyui").exists() and not list(tmp_path.rglob("evil.py"))


def test_a_failed_step_says_what_to_do(capfd):
    with pytest.raises(
        setup.SetupError, match="(?s)this step failed: trying.*boom.*network is down or the disk is full.*same command again"
    ):
        setup.run_step("trying", [sys.executable, "-c", "print('boom'); raise SystemExit(3)"])


def test_too_small_a_disk_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30})())
    with pytest.raises(setup.SetupError, match="1 GiB free.*VIDCORE_CACHE"):
        setup.set_up_host(tmp_path)


def test_stamps_hold_for_their_versions_only(tmp_path):
    stamp = setup.Stamp(tmp_path / "s", "a==1")
    assert not stamp.done()
    stamp.write()
    assert stamp.done() and not setup.Stamp(tmp_path / "s", "a==2").done()


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path):
    with pytest.raises(setup.SetupError, match="is not a ComfyUI folder"):
        setup.existing_host(tmp_path, None)
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no module torch' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(setup.SetupError, match="(?s)no module torch.*--python"):
        setup.existing_host(tmp_path, broken)


def test_linking_the_pack_is_idempotent_and_spares_what_is_not_ours(tmp_path):
    for _ in range(2):
        link_pack(tmp_path)
        assert (tmp_path / PACK).resolve() == HERE
    (tmp_path / PACK).unlink()
    (tmp_path / PACK).mkdir()
    with pytest.raises(setup.SetupError, match="in the way"):
        link_pack(tmp_path)


def test_command_line_errors_are_plain_text():
    run = subprocess.run([sys.executable, "start.py", "render", "none.json"], cwd=HERE, capture_output=True, text=True)
    assert run.returncode == 1 and "cannot read the workflow none.json" in run.stderr and "Traceback" not in run.stderr
    run = subprocess.run([sys.executable, "start.py", "render", "--bogus"], cwd=HERE, capture_output=True, text=True)
    assert run.returncode == 2 and "unknown arguments: --bogus" in run.stderr


@pytest.mark.parametrize(
    "first, second, expected", [(0, 0, 0), (1, 0, 1), (0, 1, 1), (0, -9, -9), (-9, 0, -9), (2, 0, 2), (5, 0, 5)]
)
def test_either_half_of_the_tests_may_fail_the_command(tmp_path, first, second, expected):
    """Exit codes of two stand-ins for pytest; a negative one is the signal that ends it."""
    script = tmp_path / "pytest.py"
    script.write_text(
        f"import os, pathlib, sys\ncode = {second} if sys.argv[-1] == 'large' else {first}\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).open('a').write(sys.argv[-1] + ';')\n"
        "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)\n"
    )
    assert start.run_all([sys.executable, str(script)], dict(os.environ)) == expected
    stopped = first not in (0, 1)  # by the person, or by the system: then the other half does not begin
    assert (tmp_path / "ran").read_text() == ("not large;" if stopped else "not large;large;")
