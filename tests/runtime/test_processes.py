"""Tests of two processes that train one run over loopback, and of the loss of either."""

import contextlib
import socket
import subprocess
import sys
import time

import pytest
from children import xla_flags
from counted import counts
from killed_runs import Program, results_of
from tiny_runs import assert_same_run

from sft_jax import main
from sft_jax.runtime.processes import _LOST, HEARTBEAT_SECONDS

EPOCHS = 2
SHARDED = "--config.data.placement=sharded"


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Pair:
    """Runs the program on one recipe in two processes, in folders of `place`; `ended`: when each ended."""

    def __init__(self, place, programs):
        self.place, self.programs, self.ended = place, programs, []

    def run(self, name, *flags, each=((), ()), **ends):
        """Returns exit code, stdout and stderr of both.

        Args:
          name: the folder of the run.
          flags: flags of both.
          each: further flags of the first and of the second.
          ends: first=END or second=END, see tiny_program.py.
        """
        address = f"localhost:{free_port()}"
        for index, program in enumerate(self.programs):
            environment = {"END": ends[key]} if (key := ("first", "second")[index]) in ends else {}
            where = ("--coordinator-address", address, "--num-processes", "2", "--process-id", str(index))
            program.start(name, *flags, *where, *each[index], **environment)
        outcomes, self.ended = [], []
        for program in self.programs:
            outcomes.append(program.finish())
            self.ended.append(time.monotonic())
        return outcomes


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    with contextlib.ExitStack() as stack:
        yield Pair(place, [stack.enter_context(Program(place, epochs=EPOCHS)) for _ in range(2)])


@pytest.fixture(scope="module")
def whole(pair):
    """The output of an uninterrupted run."""
    ends = pair.run("whole")
    assert [code for code, _, _ in ends] == [0, 0], ends
    return ends


@pytest.mark.long
def test_two_processes_are_bit_identical_to_one(pair, whole):
    """The one process has as many devices; test_devices.py compares them with one device."""
    program = pair.programs[0]
    program.start("alone", XLA_FLAGS=xla_flags(devices=2))
    code, _, error = program.finish()
    assert code == 0, error
    assert_same_run(pair.place / "alone", pair.place / "whole")
    assert results_of(pair.place / "alone") == results_of(pair.place / "whole")


@pytest.mark.long
def test_only_the_first_process_prints(pair, whole):
    (_, printed, _), (_, silent, _) = whole
    assert "2 x cpu in 2 processes" in printed
    assert all(line.startswith("[Gloo]") for line in silent.splitlines())  # printed by the library itself
    assert "</html>" in (pair.place / "whole" / "report.html").read_text()


@pytest.mark.long
@counts(kills=2)
def test_a_run_continues_after_a_process_was_killed(pair, whole):
    """Kills first one of them, then the other one after both have resumed. Each holds half of the images only."""
    for lost, left, flags in (("first", 1, []), ("second", 0, ["--resume"])):
        start = time.monotonic()
        ends = pair.run("killed", *flags, SHARDED, **{lost: "training:2:0:SIGKILL"})
        assert time.monotonic() - start < 60
        assert ends[1 - left][0] == -9
        code, _, error = ends[left]
        assert code == 1
        assert _LOST in error
        assert "Traceback" not in error
    assert [code for code, _, _ in pair.run("killed", "--resume", SHARDED)] == [0, 0]
    assert "a share stored on each device" in (pair.place / "killed" / "train.log").read_text()
    assert_same_run(pair.place / "killed", pair.place / "whole")
    assert results_of(pair.place / "killed") == results_of(pair.place / "whole")


@pytest.mark.slow
@counts(kills=1)
def test_a_hanging_process_ends_the_other(pair, whole):
    # A cluster would kill the process that hangs; here tiny_program.py does.
    start = time.monotonic()
    ends = pair.run("hanging", second="training:4:0:SIGSTOP")
    assert HEARTBEAT_SECONDS < pair.ended[0] - start < 60 + HEARTBEAT_SECONDS
    assert ends[0][0] == 1
    assert _LOST in ends[0][2]


@pytest.mark.long
@counts(stops=1)
def test_a_signal_to_one_process_stops_both(pair, whole):
    ends = pair.run("stopped", second="training:4:0:SIGTERM")
    for code, _, error in ends:
        assert code == 4
        assert "stopped by SIGTERM after step" in error
    assert pair.programs[0].run("stopped", "--resume", XLA_FLAGS=xla_flags(devices=2)) == (0, "")
    assert_same_run(pair.place / "stopped", pair.place / "whole")


def test_an_error_of_one_process_ends_both(pair):
    wrong = ("--config.init=nowhere.safetensors",)
    ends = pair.run("wrong", each=((), wrong))
    assert [code for code, _, _ in ends] == [2, 2]
    assert "error: process 1: no weights at nowhere.safetensors" in ends[0][2]
    assert "error: no weights at nowhere.safetensors" in ends[1][2]
    assert not (pair.place / "wrong").exists()


def test_processes_with_different_configs_are_refused(pair):
    ends = pair.run("different", each=((), ("--config.optimizer.learning_rate=0.5",)))
    assert [code for code, _, _ in ends] == [2, 2]
    for _, _, error in ends:
        assert "processes 0 and 1 differ in optimizer.learning_rate (" in error
    assert not (pair.place / "different").exists()


@pytest.mark.long
def test_a_used_folder_is_refused_by_all(pair, whole):
    ends = pair.run("whole")
    assert [code for code, _, _ in ends] == [2, 2]
    assert "process 0: " in ends[1][2]
    assert all("already contains a run; add --resume" in error for _, _, error in ends)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-processes", "2"], "--coordinator-address, --num-processes and --process-id must be given together"),
        (
            ["--coordinator-address", "a:1", "--num-processes", "2", "--process-id", "2"],
            "--process-id 2 must be between 0 and 1",
        ),
        (["--coordinator-address", "a", "--num-processes", "2", "--process-id", "0"], "a is not HOST:PORT"),
        (["--distributed", "--lr-find"], "--lr-find supports only one process"),
    ],
)
def test_wrong_usage_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        main.parse(["--config", "configs/digits.py", *flags])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_a_process_without_others_gives_up():
    alone = []
    for index in (0, 1):
        script = (
            "import sys; from sft_jax.runtime import processes; from sft_jax.errors import run_command; "
            "processes.JOIN_SECONDS = 2; "
            f"sys.exit(run_command(lambda: processes.join('localhost:{free_port()}', 2, {index})))"
        )
        alone.append(subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True))
    for index, process in enumerate(alone):
        _, error = process.communicate()
        assert process.returncode == 2
        assert f"error: process {index} of 2 could not connect to the others within 2 seconds" in error


def test_a_missing_cluster_is_an_error(pair):
    program = pair.programs[0]
    program.start("nowhere", "--distributed")
    code, _, error = program.finish()
    assert code == 2
    assert "error: --distributed detects no cluster" in error
