"""Signals that stop a run: what is computed is committed, whatever the main thread does."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, os, signal, sys, time
from midsight.extraction.stopping import EndNow, stopping_on_signals

handler, sent, stop_s = sys.argv[1], [int(number) for number in sys.argv[2].split(",")], float(sys.argv[3])
if handler == "command":
    signal.signal(signal.SIGTERM, EndNow(3, lambda: "Stopped."))
elif handler == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
elif handler == "own":
    signal.signal(signal.SIGTERM, lambda *_: print("own handler", flush=True))

def stop():
    time.sleep(stop_s)
    print("committed", flush=True)

with stopping_on_signals(stop):
    for number in sent:
        os.kill(os.getpid(), number)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**6)  # one call that no Python handler interrupts
print("went on", flush=True)
"""


def signalled(handler, *sent, stop_s=0.1):
    numbers = ",".join(str(int(number)) for number in sent)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, handler, numbers, str(stop_s)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handler", "sent", "exit_code", "said"),
    [
        ("command", [signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], 3, ["committed"]),
        ("python", [signal.SIGXCPU], 128 + signal.SIGXCPU, ["committed"]),
        ("nohup", [signal.SIGHUP], 0, ["went on"]),
        ("own", [signal.SIGTERM], 0, ["own handler", "went on"]),
    ],
)
def test_a_signal_commits_once_and_ends_the_process_unless_something_else_is_wanted(handler, sent, exit_code, said):
    returned, printed, errors = signalled(handler, *sent)
    assert (returned, printed) == (exit_code, said), errors
    assert ("Stopped." in errors) == (handler == "command")
