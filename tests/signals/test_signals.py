"""The first signal interrupts while there is nothing to save, and is remembered once there is."""

from __future__ import annotations

import signal

import pytest

from gguflora.signals import signal_watch

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_interrupts_and_says_which_it_was(number: signal.Signals):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as interrupt, signal_watch() as watch:
        signal.raise_signal(number)
    assert interrupt.value.args == (number,)
    assert watch.stopped_by() is None
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_patient_watch_remembers_it_and_the_second_one_is_the_system_s(number: signal.Signals):
    with signal_watch() as watch:
        watch.patient = True
        assert watch.stopped_by() is None
        signal.raise_signal(number)
        assert watch.stopped_by() == number.name
        assert signal.getsignal(number) == signal.SIG_DFL
