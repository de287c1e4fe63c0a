"""Turns on the host's weight paging on the device of the pack beside this one."""

import sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.with_name("vidcore_test_other_device"))]

import pages  # noqa: E402

pages.install()
