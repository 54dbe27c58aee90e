"""Runs in a bucket, against moto's S3 on loopback."""

import io
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import midsight
from midsight.buckets import connect
from midsight.buckets.path import BucketPath, to_place
from midsight.cli import app
from midsight.errors import CommitError, DamagedRunError, MidsightError, RunError, UnreachableError
from midsight.store import RunWriter, index, lease
from midsight.store.place import validate_place
from midsight.store.probe import Probe
from midsight.store.reader import open_run
from midsight.store.verify import drop_bad, verify_run
from support.buckets import BUCKET, ENVIRONMENT, Door, Request, serving_bucket
from support.made_up import QUERY_1, VISION, content_of, make_failure, make_record, make_spec, write_run
from support.planted import QUERY, write_planted

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # moto warns of its own libraries
NUMBERS = itertools.count()
FAULTS = ["500", "500", "reset", "reset", "lost", "lost", "half", "half", "timeout"]
LEASE = 0.9
"""Seconds, in place of half a minute."""


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, Door]]:
    with serving_bucket() as (address, door):
        yield address, door


@pytest.fixture
def door(store: tuple[str, Door], monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    address, door = store
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(connect, "RETRIES", 2)
    monkeypatch.setattr(connect, "REQUEST_S", 5.0)
    monkeypatch.setattr(lease, "LEASE_S", LEASE)
    connect.open_store.cache_clear()
    door.fault, door.latency_s, door.ignores_conditions = (lambda _: None), 0.0, False
    door.requests.clear()
    yield door
    door.fault = lambda _: None
    connect.open_store.cache_clear()


@pytest.fixture
def address(door: Door) -> str:
    return f"s3://{BUCKET}/runs/{next(NUMBERS)}"


def write(place: str | Path, rows: range, **options: object) -> None:
    with RunWriter(place, make_spec(), **{"commit_seconds": 3600, **options}) as writer:  # pyright: ignore
        for row in rows:
            if f"s{row}" not in writer.done:
                writer.add(make_record(row))
            if row % 4 == 3:
                writer.commit()


def copy(address: str, folder: Path) -> Path:
    """The objects of a run as files."""
    place = to_place(address)
    assert isinstance(place, BucketPath)
    for file in place.rglob("*"):
        target = folder / file.relative_to(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return folder


def run_command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_in_a_bucket_is_the_same_run(address: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    for place in (address, local):
        write(place, range(10))
        with RunWriter(place, make_spec()) as writer:
            writer.fail(make_failure(11))
    assert content_of(address) == content_of(local)
    run = midsight.open_run(address)
    assert np.array_equal(run.matrix(VISION), open_run(local).matrix(VISION))
    assert np.array_equal(run.matrices("query_token"), open_run(local).matrices("query_token"))
    assert verify_run(address).sound
    copied = copy(address, tmp_path / "copied")
    assert content_of(copied) == content_of(local)
    assert verify_run(copied).sound
    names = {file.name for file in (local / "parts").iterdir()}
    assert {file.name for file in (copied / "parts").iterdir()} == names
    assert all((copied / "parts" / name).read_bytes() == (local / "parts" / name).read_bytes()
               for name in names if name.endswith(".parquet"))  # fmt: skip


def test_the_commands_take_an_address(address: str, tmp_path: Path) -> None:
    write(address, range(12))
    assert "12 stored" in run_command("show", address).replace("samples", "")
    assert "sound" in run_command("verify", address)
    run_command("export", address, "--format", "npz", "--out", tmp_path / "made.npz", "--columns", VISION)
    assert np.array_equal(np.load(tmp_path / "made.npz")[VISION], open_run(address).matrix(VISION))
    run_command("compact", address)
    assert len(open_run(address).commits) == 1
    assert verify_run(address).sound


def test_the_commands_that_conclude_take_an_address(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_planted(address, images=20)
    run_command("label", address, "--judge", "yes_no")
    run_command("probe", address, "--columns", QUERY.format(1), "--permutations", 0, "--folds", 3)
    run_command("report", address, "--out", "report.html")
    assert address in (tmp_path / "report.html").read_text()
    name = f"{address.rpartition('/')[2]}.view.parquet"
    assert f"to {name}." in run_command("view", address, "--no-start")
    assert pq.read_table(name).num_rows == len(open_run(address))
    assert Probe.load(f"{address}/findings/correct").column == QUERY.format(1)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", name}
    assert "sound" in run_command("verify", address)


def test_one_column_is_read_with_little_more_than_its_bytes(address: str, door: Door) -> None:
    widths = dict.fromkeys(make_spec().vectors, 512)
    spec = make_spec(vectors=widths)
    write_run(address, (make_record(row, spec) for row in range(600)), spec)
    run = open_run(address)
    door.requests.clear()
    vectors = run.matrix(QUERY_1)
    sent = door.sent_bytes()
    file = pq.ParquetFile(io.BytesIO(to_place(run.part_paths()[0]).read_bytes()))
    stored = file.metadata.row_group(0).column(run.columns.index(QUERY_1)).total_compressed_size
    assert np.array_equal(vectors, np.stack([make_record(row, spec).vectors[QUERY_1] for row in range(600)]))
    assert stored < sent < 1.1 * stored


def test_opening_takes_few_requests_with_an_index_and_the_same_without(
    address: str, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "INDEX_RECORDS", 10)
    write(address, range(100))
    door.requests.clear()
    run = open_run(address)
    assert len(run.commits) == 25
    assert door.counted("GET", "runs") - door.counted("GET", f"{run.path.key}/index") <= 2  # pyright: ignore
    assert len(door.requests) <= 4 + 3
    for file in (run.path / "index").rglob("*"):  # pyright: ignore[reportAttributeAccessIssue]
        file.write_bytes(b'{"records": {"0-of-1-000001.json": ["x", 5]}}')
    assert open_run(address).commits == run.commits
    for file in (run.path / "index").rglob("*"):  # pyright: ignore[reportAttributeAccessIssue]
        file.unlink()
    assert open_run(address).commits == run.commits


def test_a_copy_in_the_index_does_not_outlive_its_record(address: str) -> None:
    write(address, range(8))
    place = to_place(address)
    for suffix in (".json", ".parquet"):
        (place / "parts" / f"0-of-1-000001{suffix}").unlink()
    assert len(open_run(address)) == 4
    write(address, range(8, 12))  # under the name of the one that was deleted
    assert open_run(address).sample_ids() == [f"s{row}" for row in (*range(4), *range(8, 12))]
    assert verify_run(address).sound


def test_a_second_writer_is_refused_and_told_who_writes(address: str) -> None:
    with RunWriter(address, make_spec()) as first:
        first.add(make_record(0))
        with (
            pytest.raises(RunError, match=f"is being written by process {os.getpid()} on"),
            RunWriter(address, make_spec()),
        ):
            pass
        with pytest.raises(RunError, match="is being written"), RunWriter(address, make_spec(), shard=(0, 2)):
            pass
    with RunWriter(address, make_spec()) as second:
        assert second.done == {"s0"}


def test_a_writer_that_was_cut_off_damages_nothing_when_it_comes_back(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease.Lease, "_renew_in_time", lambda _: None)  # as in a process that is stopped
    cut_off = RunWriter(address, make_spec()).__enter__()
    cut_off.add(make_record(0))
    with RunWriter(address, make_spec()) as other:  # waits until the lease has ended
        other.add(make_record(0))
        other.commit()
        cut_off.add(make_record(1))
        with pytest.raises(CommitError, match="another process too"):
            cut_off.commit()
    assert cut_off._lock is not None
    with pytest.raises(CommitError):
        cut_off.__exit__(None, None, None)
    assert [row["sample_id"] for row in content_of(address)[0]] == ["s0"]
    assert verify_run(address).sound


def test_a_record_that_comes_too_late_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer is stopped between part and record, and goes on after another one has started."""
    write(address, range(4))
    late = RunWriter(address, make_spec()).__enter__()
    late.add(make_record(4))
    sent = late._buffer.sent = late._encoded(late._buffer)
    place = to_place(address)
    assert sent.part is not None
    (place / "parts" / f"{sent.commit.name}.parquet").write_bytes(memoryview(sent.part).cast("B"))
    assert late._lock is not None
    late._lock.close()
    with RunWriter(address, make_spec()) as other:
        monkeypatch.setattr(late, "_require_lock", lambda: None)
        with pytest.raises(CommitError, match="another process too"):
            late.commit()
        other.add(make_record(4))
    assert len(open_run(address)) == 5
    assert verify_run(address).sound
    late._left.set()


def test_a_store_that_overwrites_is_refused(address: str, door: Door) -> None:
    door.ignores_conditions = True
    for start in (lambda: validate_place(to_place(address)), lambda: RunWriter(address, make_spec()).__enter__()):
        with pytest.raises(RunError, match="overwrites objects where it is told not to"):
            start()
    with pytest.raises(MidsightError, match="is not a run folder"):
        open_run(address)


def test_a_folder_with_other_objects_is_refused(address: str) -> None:
    place = to_place(address)
    (place / "notes.txt").write_bytes(b"mine")
    with pytest.raises(MidsightError, match=r"holds other files, like notes\.txt"):
        validate_place(place)


def test_no_credentials_are_stored_or_shown(address: str, door: Door, tmp_path: Path) -> None:
    write(address, range(4))
    door.fault = lambda _: "500"
    with pytest.raises(UnreachableError) as error:
        open_run(address)
    assert "cannot be reached" in str(error.value)
    stored = b"".join(file.read_bytes() for file in copy_later(door, address, tmp_path))
    for secret in (ENVIRONMENT["AWS_SECRET_ACCESS_KEY"], ENVIRONMENT["AWS_ACCESS_KEY_ID"]):
        assert secret.encode() not in stored
        assert secret not in str(error.value)


def copy_later(door: Door, address: str, folder: Path) -> list[Path]:
    door.fault = lambda _: None
    return [file for file in copy(address, folder).rglob("*") if file.is_file()]


@pytest.fixture
def profiles(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address; credentials, region and endpoint are in the files of a profile."""
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = none\n"
        "[of-work]\naws_access_key_id = colleague\naws_secret_access_key = not-shown\n"
    )
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    (tmp_path / "config").write_text(f"[profile of-work]\nregion = eu-central-1\nendpoint_url = {endpoint}\n")
    for name in {*ENVIRONMENT, "AWS_ENDPOINT_URL"} - {"NO_PROXY"}:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "of-work")
    connect.open_store.cache_clear()
    return address


def test_the_profile_that_the_user_names_reads_and_writes(profiles: str, door: Door) -> None:
    write(profiles, range(4))
    assert len(open_run(profiles)) == 4
    signed = {tuple(request.signed.split("/")[::2]) for request in door.requests}
    assert signed == {("colleague", "eu-central-1", "aws4_request")}


def test_a_profile_that_cannot_be_used_is_named(profiles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of-home")
    with pytest.raises(MidsightError, match=r"the AWS profile cannot be used: .*of-home.*; correct AWS_PROFILE"):
        open_run(profiles)


def test_an_endpoint_of_a_profile_that_is_no_address_is_named(profiles: str) -> None:
    file = Path(os.environ["AWS_CONFIG_FILE"])
    file.write_text(file.read_text().replace("http://", ""))
    with pytest.raises(MidsightError, match=r"the AWS profile cannot be used: Invalid endpoint: 127.*; correct AWS_"):
        open_run(profiles)


def test_the_environment_wins_over_the_profile(profiles: str, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Path(os.environ["AWS_CONFIG_FILE"]).read_text().rpartition("= ")[2].strip()
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    write(profiles, range(1))
    assert {request.signed.partition("/")[0] for request in door.requests} == {ENVIRONMENT["AWS_ACCESS_KEY_ID"]}


@pytest.mark.parametrize("text", ["s3://", "s3:///run", "gs://bucket/../run", "s3://bucket//run", "s3://b/r?x=1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MidsightError, match="is not an address in a bucket"):
        to_place(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://ID:hid/den@bucket/run", "s3://bucket/run"),
        ("s3://hidden@bucket/run", "s3://bucket/run"),
        ("az://box/run?sv=2024&sig=hidden", "az://box/run"),
    ],
)
def test_a_key_or_signature_in_an_address_is_not_repeated(text: str, shown: str) -> None:
    with pytest.raises(MidsightError) as caught:
        to_place(text)
    wanted = f"{text[:2]}://BUCKET/FOLDER, without credentials and without a query."
    assert str(caught.value) == f"{shown} is not an address in a bucket; write {wanted}"


def test_bytes_that_were_changed_are_found_and_dropped(address: str) -> None:
    write(address, range(12))
    place = to_place(address)
    part = place / "parts" / "0-of-1-000001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(DamagedRunError, match=r"0-of-1-000001\.parquet"):
        content_of(address)
    assert not verify_run(address).sound
    assert drop_bad(address).sound
    write(address, range(12))
    assert verify_run(address).sound
    assert len(open_run(address)) == 12


WRITER = """
import sys
from midsight.store import RunWriter, lease
from support.made_up import make_record, make_spec
lease.LEASE_S = float(sys.argv[2])
with RunWriter(sys.argv[1], make_spec()) as writer:
    for row in range(24):
        if f"s{row}" not in writer.done:
            writer.add(make_record(row))
        if row % 4 == 3:
            writer.commit()
"""


def start_writer(address: str) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, address, str(LEASE)], env={**os.environ, "PYTHONPATH": paths}
    )


def kill_at_puts(door: Door, address: str, numbers: list[int]) -> None:
    """Writes a run with a process that is killed at its first, second... PUT of a part or record, and resumed."""
    for number in numbers:
        started: list[subprocess.Popen[bytes]] = []
        count = itertools.count()

        def fault(request: Request, started: list = started, count: Iterator[int] = count, number: int = number):
            if request.method != "PUT" or "/parts/" not in request.key or next(count) != number // 2:
                return None
            started[0].send_signal(signal.SIGKILL)
            return "lost" if number % 2 else "reset"

        door.fault = fault
        started.append(start_writer(address))
        assert started[0].wait() == -signal.SIGKILL
    door.fault = lambda _: None
    assert start_writer(address).wait() == 0


def test_killed_at_any_request_and_resumed_each_row_is_there_once(address: str, door: Door, tmp_path: Path) -> None:
    kill_at_puts(door, address, [0, 1, 3])
    write(tmp_path / "local", range(24))
    assert content_of(address) == content_of(tmp_path / "local")
    assert verify_run(address).sound


def write_through_faults(door: Door, address: str, seed: int) -> int:
    """Writes a run over a network that breaks, in as many tries as returned; each error says that it can resume."""
    chance = random.Random(seed)  # noqa: S311
    tries = 0
    while True:
        tries += 1
        door.fault = lambda _: chance.choice(FAULTS) if chance.random() < 0.15 else None
        try:
            write(address, range(12))
        except RunError as error:
            assert error.resumable, error  # noqa: PT017
            door.fault = lambda _: None
            time.sleep(1.2 * LEASE)
            continue
        door.fault = lambda _: None
        return tries


def test_over_a_broken_network_a_run_is_done_or_can_be_resumed(
    address: str, door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "RETRIES", 1)
    monkeypatch.setattr(connect, "REQUEST_S", 1.5)
    write(tmp_path / "local", range(12))
    tries = [write_through_faults(door, f"{address}-{seed}", seed) for seed in range(4)]
    for seed in range(4):
        assert content_of(f"{address}-{seed}") == content_of(tmp_path / "local")  # pyright: ignore
        assert verify_run(f"{address}-{seed}").sound
    assert max(tries) > 1
