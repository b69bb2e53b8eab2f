"""When Ctrl-C ends the run, when it ends some work, and when it waits."""

from __future__ import annotations

import signal
import threading

import pytest

from advisor.system.interrupts import EndedAtOnceError, answer_is_possible, answering, stoppable


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_before_an_answer_is_possible_it_ends_the_run():
    with pytest.raises(KeyboardInterrupt), answering():
        ctrl_c()


def test_work_that_can_be_stopped_is(capfd):
    with answering():
        answer_is_possible()
        with pytest.raises(KeyboardInterrupt), stoppable():
            ctrl_c()
    assert "once more ends at once" in capfd.readouterr().err


def test_elsewhere_it_waits_for_the_next_such_work():
    with answering():
        answer_is_possible()
        ctrl_c()  # between the race and the verification, say
        with pytest.raises(KeyboardInterrupt), stoppable():
            raise AssertionError("it is not begun")
        with stoppable():
            pass  # one interrupt ends one piece of work


def test_the_second_ends_all():
    def work():
        with stoppable():
            ctrl_c()

    with answering():
        answer_is_possible()
        with pytest.raises(KeyboardInterrupt):
            work()
        with pytest.raises(EndedAtOnceError) as ended:
            work()
    assert ended.value.code == 130


def test_afterwards_all_is_as_before():
    before = signal.getsignal(signal.SIGINT)
    with answering():
        answer_is_possible()
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    with stoppable():
        pass


def test_other_threads_leave_signals_alone():
    seen = []

    def use():
        with answering():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [before]
