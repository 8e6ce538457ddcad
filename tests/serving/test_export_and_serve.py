"""The MovieLens model of the demo, from its checkpoint to answers over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_server_and_python_predict_the_same_ratings(tmp_path):
    model_dir = tmp_path / "model"
    command = [sys.executable, "examples/export_and_serve.py", "--epochs", "1"]
    done = subprocess.run(
        [*command, "--model-dir", str(model_dir)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"│ +(\d+) │ (.+?) │ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │", done.stdout)
    assert len(rows) >= 8
    for _, film, true, server, python in rows:
        assert film.strip()
        assert 0.5 <= float(true) <= 5
        assert abs(float(server) - float(python)) <= 1e-4
    exported = model_dir / "export/ratings"
    assert (exported / "1/saved_model.pb").exists()
    assert f"tfdist serve {exported}\n" in done.stdout
