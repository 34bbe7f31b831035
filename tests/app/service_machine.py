"""A home directory with the tools of three service managers, which note how they are called and fail when told."""

import json
import sys
from pathlib import Path

QUESTIONS = (" show", " is-enabled", " print", "/Query")
TOOL = """#!{python}
import json, os, sys
directory = {directory!r}
with open(os.path.join(directory, "calls"), "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
for word in sys.argv[1:]:
    if os.path.exists(os.path.join(directory, "fail-" + word.split("=")[0])):
        sys.exit(f"no {{word}} today")
tasks = os.path.join(directory, "known")
os.makedirs(tasks, exist_ok=True)
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "schtasks":
    path = os.path.join(tasks, words[2])
    if words[0] == "/Create":
        data = open(words[4], "rb").read().decode("utf-16")
        open(path, "w").write(data[data.index("<Task"):])  # it keeps no comment
    elif not os.path.exists(path):
        sys.exit("ERROR: The system cannot find the file specified.")
    elif words[0] == "/Query":
        print(open(path).read())
    elif words[0] == "/Delete":
        os.unlink(path)
elif name == "launchctl" and words[0] != "print-disabled" and words[-1].count("/") != 1:
    path = os.path.join(tasks, os.path.basename(words[-1]).removesuffix(".plist"))
    if words[0] == "bootstrap":
        open(path, "x").close()
    elif words[0] == "enable":
        pass
    elif not os.path.exists(path):
        sys.exit("Could not find service")
    elif words[0] == "bootout":
        os.unlink(path)
    elif words[0] == "print":
        print("\\tstate = running\\n\\tpid = 77")
path = os.path.join(directory, "says")
if "show" in sys.argv and os.path.exists(path):
    print(open(path).read())
"""


class Machine:
    """A home directory, and tools on PATH that note how they are called and fail when told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.units = directory / "config" / "systemd" / "user"
        self.bin = directory / "bin"
        self.bin.mkdir()
        for name in ("systemctl", "loginctl", "launchctl", "schtasks"):
            self.add(name)

    def add(self, name: str) -> None:
        path = self.bin / name
        path.write_text(TOOL.format(python=sys.executable, directory=str(self.directory)))
        path.chmod(0o755)

    def fail(self, word: str) -> None:
        (self.directory / f"fail-{word}").touch()

    def mend(self, word: str) -> None:
        (self.directory / f"fail-{word}").unlink()

    def says(self, text: str) -> None:
        (self.directory / "says").write_text(text)

    def calls(self) -> list[str]:
        """The calls since the last time, without questions."""
        path = self.directory / "calls"
        found = [" ".join(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return [call for call in found if not any(question in call for question in QUESTIONS)]

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.units.iterdir()} if self.units.exists() else {}
