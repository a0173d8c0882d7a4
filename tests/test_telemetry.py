"""Nothing that we import tells others of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """if True:
    import engines, json, openvino, sys
    from openvino.tools.ovc import telemetry_utils
    print(json.dumps([telemetry_utils.tm.__name__, [name for name in sys.modules if "telemetry.main" in name]]))
"""


def test_openvino_does_not_report_that_it_was_imported(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "CI": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == ["openvino.tools.ovc.telemetry_stub", []]
    assert list(tmp_path.iterdir()) == []  # no client's number was made
