"""What a process of ours is told when it starts: the same by fork and by exec."""

from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class ProcessArguments:
    """A process's place in the system.

    Attributes:
        name: process and service name.
        slot: number of its slot on the liveness board.
        incarnation: which life of this name it is; grows with every start.
        data_dir: absolute data directory.
        runtime_dir: absolute runtime directory.
        config_path: configuration file, or None for defaults.
        portable: whether the portable ports are in use.
    """

    name: str
    slot: int
    incarnation: int
    data_dir: str
    runtime_dir: str
    config_path: str | None = None
    portable: bool = False

    def to_argv(self) -> list[str]:
        """Return the command line options that `from_argv` parses back."""
        argv = []
        for key, value in asdict(self).items():
            if value is not None and value is not False:
                argv.append(f"--{key.replace('_', '-')}" if value is True else f"--{key.replace('_', '-')}={value}")
        return argv

    @classmethod
    def from_argv(cls, argv: list[str]) -> Self:
        """Parse options; exits with a usage error on anything else."""
        import argparse  # noqa: PLC0415 - 1 MiB, for those that are not forked

        parser = argparse.ArgumentParser(description="One process of relctl; started by the launcher, not by hand.")
        parser.add_argument("--name", required=True)
        parser.add_argument("--slot", required=True, type=int)
        parser.add_argument("--incarnation", required=True, type=int)
        parser.add_argument("--data-dir", required=True)
        parser.add_argument("--runtime-dir", required=True)
        parser.add_argument("--config-path")
        parser.add_argument("--portable", action="store_true")
        return cls(**vars(parser.parse_args(argv)))
