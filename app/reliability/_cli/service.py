"""`relctl service`: have the service manager of this machine start the system at boot, and keep it."""

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.session import Session
from protocol.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from app.reliability._service.managers import Manager
    from app.reliability._service.model import Release, Service

START_TIMEOUT_S: Final = 60.0
PLATFORMS: Final = {"linux": "linux", "darwin": "macos", "win32": "windows"}
"""What `sys.platform` says, and what we call it."""


class _ToldToStop(BaseException):
    """The service manager wants no more of it."""


@click.group(short_help="Start at boot, by the service manager of this machine.")
def service() -> None:
    """Have the service manager of this machine start the system at boot, and keep it."""


@service.command(cls=RelctlCommand, short_help="Start at boot from now on, and now.")
@click.option("--name", default="relctl", show_default=True, metavar="NAME", help="What the manager calls it.")
@click.option("--config", type=click.Path(dir_okay=False), metavar="FILE", help="Configuration file, as of `up`.")
@click.option("--portable", is_flag=True, help="Use the portable ports, as of `up`.")
@click.option("--print", "shown", is_flag=True, help="Show what would be written; touch nothing.")
@click.option("--platform", metavar="NAME", help="With --print: linux, macos, windows, cron.")
@click.option("--force", is_flag=True, help="Replace what a person has changed; a copy is kept beside it.")
@click.option("--no-start", is_flag=True, help="Do not start it now.")
@click.option("--at-login", is_flag=True, help="Start it once you log in, not at boot.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]", type=click.UNPROCESSED)
@pass_session
def install(
    session: Session, /, name: str, config: str | None, command: tuple[str, ...], platform: str | None, **flags: bool
) -> None:
    """Have the service manager start the system at boot, restart it, and look after it every minute.

    FILE and COMMAND are those of a start. To do it again is harmless, and brings the files up to date.
    """
    from app.reliability._service.model import Service

    wanted = Service(
        name=name,
        data_dir=session.data_dir,
        config=None if config is None else os.path.abspath(config),
        portable=flags["portable"],
        directory=os.getcwd() if command else None,
        command=command,
        path=os.environ.get("PATH", ""),
        runtime_dir=os.environ.get("RELCTL_RUNTIME_DIR") or None,
        user=_user(),
        at_login=flags["at_login"],
    )
    if flags["shown"]:
        _show(session, wanted, platform or _own_platform())
        return
    if platform not in {None, _own_platform()}:
        raise LocalError(ErrorCode.USAGE, "--platform is for --print: only this machine can be installed on")
    manager = _manager()
    manager.refuse_absent()
    kept = _write(manager, wanted, force=flags["force"])
    notes = [f"What was changed by hand is kept as {path}." for path in kept]
    late = "" if flags["at_login"] else manager.start_at_boot()
    notes += [late] if late else []
    if not flags["no_start"]:
        manager.start(wanted, session.timeout_s(START_TIMEOUT_S))
    _report_installed(session, manager, name, notes)


@service.command(cls=RelctlCommand, short_help="Remove what install wrote.")
@click.option("--name", default="relctl", show_default=True, metavar="NAME", help="What the manager calls it.")
@click.option("--force", is_flag=True, help="Also what a person has changed since; a copy is kept beside it.")
@pass_session
def uninstall(session: Session, name: str, force: bool) -> None:
    """Stop what the service manager has started, and remove what install wrote. To do it again is harmless."""
    from app.reliability._service import files
    from app.reliability._service.model import FileState

    manager = _manager()
    found = _states(manager, name, None)
    foreign = [path for path, state in found.items() if state is FileState.FOREIGN]
    edited = [path for path, state in found.items() if state is FileState.EDITED]
    ours = [path for path, state in found.items() if state not in {FileState.FOREIGN, FileState.MISSING}]
    outside = manager.changed_outside(name) if ours else ""
    if (edited or outside) and not force:
        raise _changed([*edited, *([f"the service {name} itself"] if outside else [])])
    kept: list[str] = [_keep_outside(ours[0], outside)] if outside else []
    if ours:
        try:
            manager.refuse_absent()
        except LocalError as absence:
            session.output.note(f"Nothing is stopped: {absence.message}.")
        else:
            manager.disable(name)
        kept += [files.keep(path) for path in edited]
        files.remove([path for path in ours if path not in edited])
        manager.reload(name)
    if session.output.json:
        session.output.document({"removed": ours, "kept": kept, "foreign": foreign})
        return
    lines = [f"Removed {path}." for path in ours] + [f"A copy is kept as {path}." for path in kept]
    lines += [f"{path} was not written by relctl and stays." for path in foreign]
    session.output.text("\n".join(lines) or "Nothing is installed.")


@service.command(cls=RelctlCommand, short_help="Is it installed, enabled, running, up to date?")
@click.option("--name", default="relctl", show_default=True, metavar="NAME", help="What the manager calls it.")
@pass_session
def status(session: Session, name: str) -> None:
    """Tell whether the service is installed, enabled, running, and what this release would write."""
    from app.reliability._service.model import FileState

    manager = _manager()
    recorded = _recorded(manager, name)
    found = _states(manager, name, recorded)
    state = manager.state(name)
    missing = [path for path, item in found.items() if item is FileState.MISSING]
    report: dict[str, Any] = {
        "platform": manager.platform,
        "name": name,
        "data_dir": recorded.data_dir if recorded else None,
        "installed": not missing and recorded is not None,
        "enabled": state.enabled,
        "running": state.running,
        "at_boot": state.at_boot,
        "stale": any(item is FileState.STALE for item in found.values()) or 0 < len(missing) < len(found),
        "edited": any(item in {FileState.EDITED, FileState.FOREIGN} for item in found.values()),
        "files": [{"path": path, "state": str(item)} for path, item in found.items()],
        "detail": state.detail,
    }
    if session.output.json:
        session.output.document(report)
        return
    words = {True: "yes", False: "no", None: "unknown"}
    rows = [(key, words[report[key]]) for key in ("installed", "enabled", "running", "at_boot", "stale", "edited")]
    session.output.text("\n".join(f"{key.replace('_', ' '):<10} {word}" for key, word in rows))
    about = [f"data       {recorded.data_dir}"] if recorded else []
    about += [f"{item:<10} {path}" for path, item in found.items()]
    session.output.text("\n".join([*about, state.detail] if state.detail else about))


@service.command(cls=RelctlCommand, hidden=True)
@click.option("--config", metavar="FILE")
@click.option("--portable", is_flag=True)
@click.option("--directory", metavar="DIR")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_session
def run(session: Session, config: str | None, portable: bool, directory: str | None, command: tuple[str, ...]) -> None:
    """Become the launcher, or join the one that runs: what the service manager executes."""
    from app.reliability._cli.down import down
    from app.reliability._cli.ensure import look
    from app.reliability._cli.offline import read_board
    from app.reliability._cli.up import launcher_command
    from app.reliability._service.joining import become, join

    def told_to_stop(*_: object) -> None:
        raise _ToldToStop

    def anybody_stops() -> bool:
        reading = read_board(session)
        return reading is not None and reading.stopping and reading.anybody_runs

    signal.signal(signal.SIGTERM, told_to_stop)
    try:
        if join(lambda: look(session), anybody_stops, session.wait_until, session.ports.sleep):
            words = launcher_command(session.data_dir, config, portable=portable)
            become([*words, "--", *command] if command else words, directory)
    except _ToldToStop:  # as the launcher does, which is followed here
        click.get_current_context().invoke(down)


@service.command(cls=RelctlCommand, hidden=True)
@click.option("--name", default="relctl", metavar="NAME")
@pass_session
def check(session: Session, name: str) -> None:
    """Do as `relctl ensure`, but have the service manager start what is to be started: what its timer executes."""
    from app.reliability._cli.ensure import ensure, look
    from app.reliability._start import Condition

    if look(session).condition is Condition.MISSING:
        manager = _manager()
        manager.refuse_absent()
        manager.start_again(name)
        session.output.text(f"It did not run; {name} is started again.")
        return
    assert ensure.callback is not None  # noqa: S101 - told to the type checker
    click.get_current_context().invoke(ensure, config=None, portable=False, command=())


def _own_platform() -> str:
    return PLATFORMS.get(sys.platform, sys.platform)


def _manager() -> "Manager":
    """Return the service manager of this machine.

    Raises:
        LocalError: it is of a kind that is not known.
    """
    match _own_platform():
        case "linux":
            from app.reliability._service.systemd_manager import SystemdManager

            return SystemdManager()
        case "macos":
            from app.reliability._service.launchd_manager import LaunchdManager

            return LaunchdManager()
        case "windows":
            from app.reliability._service.windows_manager import WindowsManager

            return WindowsManager()
    message = f"relctl knows no service manager of {sys.platform}"
    raise LocalError(ErrorCode.FAILED, message, "`relctl service install --print --platform cron` may help.")


def _user() -> str:
    name = os.environ.get("USERNAME") or os.environ.get("USER") or ""
    domain = os.environ.get("USERDOMAIN", "")
    return f"{domain}\\{name}" if domain else name


def _release() -> "Release":
    from app.reliability import _service
    from app.reliability._service.model import Release

    if not sys.executable:
        raise LocalError(ErrorCode.FAILED, "Python does not know the path of its own interpreter", "")
    directory = os.path.dirname(os.path.abspath(_service.__file__))
    python = os.path.abspath(sys.executable)
    windowless = f"{python.removesuffix('python.exe')}pythonw.exe"
    if python.endswith("python.exe") and os.path.exists(windowless):  # no console flashes up every minute
        python = windowless
    return Release(python, os.path.join(directory, "entry.py"))


def _show(session: Session, wanted: "Service", platform: str) -> None:
    """Write the files as text; nothing is touched."""
    from app.reliability._service import cron, launchd, systemd, windows

    match platform:
        case "linux":
            texts = systemd.render(wanted, _release())
        case "macos":
            texts = launchd.render(wanted, _release())
        case "windows":
            texts = windows.render(wanted, _release())
        case "windows-service":
            message = "relctl is no Windows service: it needs no more than a task, which starts at boot as well"
            raise LocalError(ErrorCode.USAGE, message, "Use --platform windows.")
        case "cron":
            texts = {"crontab": "\n".join(cron.lines(wanted, _release())) + "\n"}
        case _:
            raise LocalError(
                ErrorCode.USAGE, f"{platform!r} is no platform", "It is one of: linux, macos, windows, cron."
            )
    if session.output.json:
        session.output.document({"platform": platform, "files": texts})
    elif len(texts) == 1:
        session.output.text(next(iter(texts.values())).rstrip("\n"))
    else:
        session.output.text("\n".join(f"### {name}\n{text}" for name, text in texts.items()).rstrip("\n"))


def _states(manager: "Manager", name: str, recorded: "Service | None") -> dict[str, Any]:
    from app.reliability._service import files
    from app.reliability._service.model import check_name, judge

    check_name(name)
    wanted = manager.render(recorded, _release()) if recorded else {}
    return {path: judge(files.read(path), wanted.get(path)) for path in manager.paths(name)}


def _recorded(manager: "Manager", name: str) -> "Service | None":
    """Return what was asked for when the service was installed, as its files tell."""
    from app.reliability._service import files
    from app.reliability._service.model import check_name, read_seal

    check_name(name)
    for path in manager.paths(name):
        text = files.read(path)
        sealed = read_seal(text) if text is not None else None
        if sealed is not None and sealed.service.name == name:
            return sealed.service
    return None


def _write(manager: "Manager", wanted: "Service", *, force: bool) -> list[str]:
    """Put the files in place and enable them, or leave all as it was; returns where copies are kept.

    Raises:
        LocalError: nothing has changed.
    """
    from app.reliability._service import files
    from app.reliability._service.model import FileState

    recorded = _recorded(manager, wanted.name)
    if recorded is not None and recorded.data_dir != wanted.data_dir and not force:
        message = f"the service {wanted.name} is that of {recorded.data_dir}"
        raise LocalError(ErrorCode.REFUSED, message, "Give another --name, or --force to replace it.")
    texts = manager.render(wanted, _release())
    before = {path: files.read(path) for path in texts}
    found = _states(manager, wanted.name, wanted)
    changed = [path for path, state in found.items() if state in {FileState.EDITED, FileState.FOREIGN}]
    outside = manager.changed_outside(wanted.name)
    if (changed or outside) and not force:
        raise _changed([*changed, *([f"the service {wanted.name} itself"] if outside else [])])
    undo = files.Undo({path: text for path, text in before.items() if path not in changed})
    kept = {path: files.keep(path) for path in changed}
    try:
        files.write(texts)
        manager.enable(wanted)
    except LocalError:
        undo()
        for path, copy in kept.items():
            os.replace(copy, path)
        manager.reload(wanted.name)
        raise
    return [*kept.values(), *([_keep_outside(next(iter(texts)), outside)] if outside else [])]


def _keep_outside(path: str, text: str) -> str:
    """Keep, beside the service's files, what a person has changed in the manager itself; returns where."""
    from app.reliability._service import files

    beside = f"{path}.outside"
    files.write({beside: text})
    return files.keep(beside)


def _changed(paths: list[str]) -> LocalError:
    message = f"changed by hand, or not written by relctl: {', '.join(paths)}"
    return LocalError(ErrorCode.REFUSED, message, "--force replaces it, and keeps a copy beside it.")


def _report_installed(session: Session, manager: "Manager", name: str, notes: list[str]) -> None:
    state = manager.state(name)
    paths = manager.paths(name)
    if session.output.json:
        report = {"name": name, "files": paths, "enabled": state.enabled, "running": state.running, "notes": notes}
        session.output.document(report | {"at_boot": state.at_boot})
        return
    runs = "runs" if state.running else "does not run yet"
    lines = [f"{name} is installed and {runs}; `{manager.advice(name)}` shows its log.", *notes]
    session.output.text("\n".join(lines))
