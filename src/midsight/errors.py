"""The errors midsight raises on purpose: one sentence that names the thing, its value and the mend."""


class MidsightError(Exception):
    """A call that cannot be carried out as it was given; the command exits with 2."""

    resumable = False
    """Whether the same call can go on later from what is stored; the command then exits with 3."""


class SampleError(MidsightError):
    """One sample that cannot be extracted; in a run it is recorded as failed and the run goes on."""


class RunError(MidsightError):
    """A run folder that cannot be written or read as it is."""


class DamagedRunError(RunError):
    """Stored data that is not what was written; the message names the part."""


class BrokenOffError(MidsightError):
    """Work that ended early for a reason outside the samples: a stream's network, a lost device."""

    resumable = True


class RepeatedIdError(MidsightError):
    """An id that comes a second time in a stream; what came before is good."""


class CommitError(RunError):
    """A commit that could not be written, on a full disk for example; all commits before it are intact."""

    resumable = True


def first_line(error: BaseException) -> str:
    """What a library's error says, its first line, or the error's type where it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
