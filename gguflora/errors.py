"""The errors a user can meet, as a map.

    GgufloraError
    ├── GivenError              exit 2   what you gave
    │   ├── UsageError                   an option or a combination of options
    │   ├── FileError                    a GGUF, an adapter, a saved state
    │   ├── ModelError                   an architecture, tensor, type or target that is not supported
    │   ├── DataError                    a dataset, one of its records, a template
    │   └── FolderInUse         exit 6   another run is writing to the output folder now
    ├── MachineError            exit 4   what the machine lacks: memory, disk space
    └── NumericError            exit 5   what the numbers did: a loss that is no longer finite

Each message is one sentence: what is wrong, where (file, line or tensor), what to do. The command line prints it
without a traceback; anything that is not a GgufloraError is a bug of ours.
"""


class GgufloraError(Exception):
    """A failure that the user can understand and act on."""

    exit_code = 1


class GivenError(GgufloraError):
    """What the user gave can't be used as it is."""

    exit_code = 2


class UsageError(GivenError):
    """An option, or a combination of options, is wrong."""


class FileError(GivenError):
    """A GGUF, an adapter or a saved state can't be read, or doesn't fit."""


class ModelError(GivenError):
    """The model, or what is asked of it, is not supported."""


class DataError(GivenError):
    """A dataset, one of its records, or a chat template can't be used."""


class FolderInUse(GivenError):
    """Another run is writing to the output folder."""

    exit_code = 6


class MachineError(GgufloraError):
    """The machine lacks memory or disk space."""

    exit_code = 4


class NumericError(GgufloraError):
    """The loss or a gradient is no longer a finite number."""

    exit_code = 5
