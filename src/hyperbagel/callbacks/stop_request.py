"""Signals that tell a run to end: a training finishes its batch, then all its processes stop together."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import lightning as L
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = b"\nCtrl+C: the batch is finished and a checkpoint saved; once more ends at once\n"


class StopRequest:
    """Takes SIGTERM and SIGINT while a trainer runs.

    Lightning has its own ways, with which a run that was told to end looks like a finished one (exit status 0), one
    that was interrupted is not saved, and processes of which only one was told wait for each other.

    number: of the signal, None as long as there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._trainer: L.Trainer | None = None

    def listen(self, trainer: L.Trainer) -> None:
        """Handle the signals until the trainer puts back the handlers it found."""
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note if trainer.state.fn == TrainerFn.FITTING else self._end)

    def agree(self, trainer: L.Trainer) -> None:
        """To be called by all processes after the same batch: all of them stop there if one was told to."""
        if trainer.strategy.reduce_boolean_decision(self.number is not None, all=False):
            trainer._signal_connector.received_sigterm = True  # looked at when the batch's last hook is done

    def status(self, trainer: L.Trainer) -> int:
        """What the process exits with: 128 + signal, as shells have it; 0 for those that the first one started, which
        would be killed in the middle of their end if one of them seemed to have failed."""
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(environment, LightningEnvironment) and trainer.local_rank > 0:
            return 0
        return 128 + (self.number or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """In a training. A signal comes anywhere, in the middle of an optimizer's step too."""
        if number == signal.SIGINT:
            if self.number is not None:
                raise KeyboardInterrupt
            os.write(2, _GRACE)  # printing could meet another print halfway
        self.number = self.number or number

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Where there is nothing to save."""
        self.number = number
        if self._trainer is not None and self._trainer.strategy.launcher is not None:
            self._trainer.strategy.launcher.kill(number)
        raise SIGTERMException(128 + number)
