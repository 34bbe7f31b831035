"""The example of docs/ARCHITECTURE.md, run as it stands there: one more actor under the real launcher."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from app.reliability.client import Client
from protocol.errors import ReliabilityError
from tests.spine import ROOT, until

LAUNCHER = """
import sys
import actors
actors.__path__.append(sys.argv[1])
import launcher
from actors.load.config import LoadConfig
launcher.ACTORS += ("load",)
launcher.SECTIONS["load"] = LoadConfig
sys.exit(launcher.main(["--data-dir", sys.argv[2]]))
"""


def write_example(folder: Path) -> list[str]:
    """Write the documented files below `folder`; return their names."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    files = re.findall(r"```python\n# (actors/load/\S+)\n(.*?)```", text, re.DOTALL)
    for path, source in files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source, encoding="utf-8")
    return [path for path, _ in files]


def test_the_documented_actor_runs_like_any_other(tmp_path: Path) -> None:
    assert write_example(tmp_path) == ["actors/load/core.py", "actors/load/config.py", "actors/load/__main__.py"]
    data = tmp_path / "data"
    data.mkdir()
    (data / "reliability.toml").write_text("[load]\nbusy_above = 1000\n")
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path / "actors"), str(data)]
    launcher = subprocess.Popen(
        command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        with Client(data) as client:
            until(lambda: answers(client), "the new actor's first answer")
            assert client.call("load", "load")["busy"] is False
            status = client.call("load", "status")
            assert [item["name"] for item in client.call("load", "describe")["operations"]] == ["load"]
            os.kill(status["pid"], signal.SIGKILL)
            until(lambda: client.call("load", "status")["incarnation"] == 2, "its next life")
    finally:
        launcher.terminate()
        _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 0, errors


def answers(client: Client) -> bool:
    """Whether the new actor answers."""
    try:
        client.call("load", "ping", timeout=1.0)
    except ReliabilityError:
        return False
    return True
