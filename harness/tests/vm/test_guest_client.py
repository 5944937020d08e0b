# SPDX-License-Identifier: Apache-2.0
"""Both ends of the agent's channel, with the agent on this machine in place of the guest."""

import errno
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatch_harness.util.errors import GuestLostError
from farwatch_harness.vm.guest_client import Guest, GuestError
from tests.support.local_agent import agent_at

IN_CREATE = 0x100


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the host's end and the guest's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def guest(channel: tuple[socket.socket, socket.socket]) -> Iterator[Guest]:
    """Yield the client, with the real agent at the other end, in a process of its own."""
    with agent_at(*channel) as client:
        yield client


def test_programs_run_with_input_output_and_status(guest: Guest) -> None:
    done = guest.run("sh", "-c", "cat; echo oops >&2; exit 3", stdin=b"in")
    assert (done.status, done.stdout, done.stderr, done.timed_out) == (3, "in", "oops\n", False)


def test_a_program_is_killed_at_its_limit(guest: Guest) -> None:
    assert guest.run("sleep", "60", limit=0.1).timed_out


def test_a_failing_script_is_an_error_with_its_output(guest: Guest) -> None:
    with pytest.raises(GuestError, match="broken"):
        guest.shell("echo broken; exit 1")


def test_inotify_events_and_errors(guest: Guest, tmp_path: Path) -> None:
    with guest.inotify() as listener:
        wd = listener.add(tmp_path, IN_CREATE)
        (tmp_path / "b\udcff").touch()
        (tmp_path / "end").touch()
        events = listener.read(until="end")
        assert [(event.wd, event.mask, event.name) for event in events] == [
            (wd, IN_CREATE, "b\udcff"),
            (wd, IN_CREATE, "end"),
        ]
        assert listener.read(quiet=0.05) == []
        with pytest.raises(OSError) as caught:
            listener.add(tmp_path / "nothing", IN_CREATE)
        assert caught.value.errno == errno.ENOENT
        listener.remove(wd)
        with pytest.raises(OSError) as caught:
            listener.remove(wd)
        assert caught.value.errno == errno.EINVAL


def test_spawned_program_keeps_running_and_its_lines_are_read_once(guest: Guest) -> None:
    process = guest.spawn("sh", "-c", "echo one; echo two; exec sleep 60")
    assert process.lines(until="two") == ["one", "two"]
    assert process.stop() == -15


def test_env_of_run_and_spawn_is_added_to_the_agents(guest: Guest) -> None:
    words = ("sh", "-c", 'echo "$WORD ${PATH:+path}"')
    assert guest.run(*words, env={"WORD": "run"}).stdout == "run path\n"
    process = guest.spawn(*words, env={"WORD": "spawn"})
    assert process.lines(count=1) == ["spawn path"]
    process.stop()


def test_system_calls_return_data_and_errno(guest: Guest, tmp_path: Path) -> None:
    guest.write_file(tmp_path / "file", b"\0\xff")
    assert guest.read_file(tmp_path / "file") == b"\0\xff"
    assert guest.os("stat", str(tmp_path / "file"))["st_size"] == 2
    with pytest.raises(OSError) as caught:
        guest.os("mkdir", str(tmp_path))
    assert caught.value.errno == errno.EEXIST


def test_python_runs_in_the_agent(guest: Guest) -> None:
    assert guest.python("def main(a, b):\n    return [a + b]", 1, 2) == [3]
    with pytest.raises(GuestError, match="ZeroDivisionError"):
        guest.python("def main():\n    return 1 / 0")


def test_slow_request_delays_no_other(guest: Guest) -> None:
    process = threading.Thread(target=guest.run, args=("sleep", "1"))
    process.start()
    assert guest.ping()["pid"] > 0
    assert process.is_alive()
    process.join()


def test_lost_guest_fails_pending_calls(
    guest: Guest, channel: tuple[socket.socket, socket.socket]
) -> None:
    channel[1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(GuestLostError, match="the test's guest has ended"):
        guest.ping()


def test_silent_guest_is_lost_at_the_limit(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    client = Guest(channel[0], lambda: "silent")
    with pytest.raises(GuestLostError, match=r"did not answer 'start'.*silent"):
        client.wait_until_ready(0.05)


def test_guest_is_followed_to_its_next_channel(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = channel
    client = Guest(ours, lambda: "gone")
    answers: list[object] = []

    def ask() -> None:
        answers.append(client.call("ping"))

    before = threading.Thread(target=ask)
    before.start()
    assert b'"id": 1' in theirs.recv(1000)
    theirs.sendall(b'{"id": 1, "res')
    client.hold()
    # It is sent by the next channel.
    after = threading.Thread(target=ask)
    after.start()
    next_ours, next_theirs = socket.socketpair()
    with next_ours, next_theirs:
        theirs.shutdown(socket.SHUT_RDWR)
        client.follow(next_ours)
        next_theirs.sendall(b'ult": "one"}\n')
        before.join(10)
        assert b'"id": 2' in next_theirs.recv(1000)
        next_theirs.sendall(b'{"id": 2, "result": "two"}\n')
        after.join(10)
        assert answers == ["one", "two"]
        assert theirs.recv(1000) == b""
    with pytest.raises(GuestLostError, match="gone"):
        client.ping()


def test_guest_that_does_not_leave_is_asked_again(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    client = Guest(channel[0], lambda: "gone")
    client.hold()
    client.release()
    channel[1].sendall(b'{"id": 1, "result": "here"}\n')
    assert client.call("ping") == "here"
    assert channel[1].recv(1000)
    client.hold()
    channel[1].shutdown(socket.SHUT_RDWR)
    client.mark_lost()
    with pytest.raises(GuestLostError, match="gone"):
        client.hold()
