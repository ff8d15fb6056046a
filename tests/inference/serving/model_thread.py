"""A thread in place of the model's process, for tests of what is said between them."""

import contextlib
import multiprocessing
import threading

import torch

from fastslm.serving.model_process import answer_through


class ModelThread(threading.Thread):
    """Stands for the model's process: all that is said goes through the connection, and nothing has to be imported."""

    exitcode = 1

    def run(self):
        with contextlib.suppress(torch.AcceleratorError):  # a process ends by it
            super().run()

    def kill(self):
        pass

    def close(self):
        assert not self.is_alive()


def start_thread(load, cache_bytes, run=answer_through):
    """Do as ``fastslm.serving.model_process.start_process`` does."""
    mine, its = multiprocessing.Pipe()
    thread = ModelThread(target=run, args=(its, load, cache_bytes), daemon=True)
    thread.start()
    return thread, mine
