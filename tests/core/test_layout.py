"""Rules of the tree that a reader relies on."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted((ROOT / "vidcore").rglob("*.py"))


def imports(path):
    return re.findall(r"^\s*(?:from|import) +([.\w]+)", path.read_text(encoding="utf-8"), re.M)


def test_the_core_never_imports_the_host_or_unpickles():
    for path in CORE:
        assert not [i for i in imports(path) if i.split(".")[0].startswith(("comfy", "folder_paths", "nodes"))], path
        assert "torch.load(" not in path.read_text(encoding="utf-8"), path


def test_what_sets_everything_up_needs_python_alone():
    for path in [ROOT / "start.py", *(ROOT / "launch").glob("*.py")]:
        assert {i.split(".")[0] for i in imports(path)} <= {"", "launch", *sys.stdlib_module_names}, path


def test_only_video_imports_pyav():
    assert [p for p in CORE if "av" in imports(p) and p.parent.name != "video"] == []


def test_parts_do_not_import_systems_nor_systems_each_other():
    for path in CORE:
        if path.parent.name in ("layers", "sample", "guide"):
            assert not [i for i in imports(path) if "systems" in i], path


def test_importing_the_core_does_no_work():
    code = "import sys, vidcore; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
