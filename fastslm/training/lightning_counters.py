"""Lightning's progress counters: everything that we write into them, and why.

Lightning saves its counters in a checkpoint and goes on by them. They know steps and epochs, not data, so a resumed run
would begin a new epoch in the middle of one, or stop short of its end. A source of batches knows where it stands, and
puts the counters right with these functions. They are of use while the training loader is made, when Lightning has
restored its counters and not yet looked at them.
"""

import lightning as L

_EPOCH = ("processed", "completed")
_BATCH = ("ready", "started", "processed", "completed")


def batches_done(trainer: L.Trainer) -> int:
    """Return the batches of the current epoch that this rank has trained on, as Lightning counts them."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def ask_for_a_loader_each_epoch(trainer: L.Trainer) -> None:
    """Let Lightning ask for the training loader at the start of every epoch.

    Epochs differ in their number of steps, and Lightning takes the number from the loader that it is given: with one
    loader for all epochs, each would end after as many steps as the first.
    """
    trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]


def reopen_epoch(trainer: L.Trainer, epoch: int) -> None:
    """Put the trainer back into the epoch that the data is in.

    Lightning closes an epoch whenever training ends, also where a last step or a signal ended it in the middle; going
    on from there it would begin the next one, and what was left of this one would never be trained on.
    """
    if trainer.current_epoch <= epoch:
        return
    progress = trainer.fit_loop.epoch_progress
    for name in _EPOCH:
        closed = getattr(progress.current, name) - epoch
        for counts in (progress.current, progress.total):
            setattr(counts, name, getattr(counts, name) - closed)


def uncount_part_of_step(trainer: L.Trainer) -> None:
    """Count whole steps only, of as many batches as a step has now.

    Lightning steps whenever the batches that it has counted fill steps. A checkpoint may come from within a step, or
    from a run whose steps had another number of batches; taken as they are, its counters would have each step mix the
    batches of two.
    """
    part = batches_done(trainer) % trainer.accumulate_grad_batches
    if not part:
        return
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.current, progress.total):
        for name in _BATCH:
            setattr(counts, name, getattr(counts, name) - part)


def end_epoch(trainer: L.Trainer, num_steps: int) -> None:
    """Let the trainer see that its epoch is over.

    A checkpoint made after the last step of an epoch goes on with the loader of the next one. Lightning takes that for
    the rest of the old epoch unless as many steps are done as the new loader has. Where training ended with the epoch,
    Lightning has closed it, and would take the counts of its batches for those of the next one.
    ``num_steps`` is the length of the loader that it is about to be given.
    """
    loop = trainer.fit_loop.epoch_loop
    epochs = trainer.fit_loop.epoch_progress.current
    if epochs.completed == epochs.ready:
        for progress in (loop.batch_progress, loop.scheduler_progress, loop.automatic_optimization.optim_progress):
            progress.reset_on_run()
        return
    done = loop.batch_progress.current
    missing = max(0, num_steps - done.ready)
    for name in _BATCH:
        setattr(done, name, getattr(done, name, 0) + missing)


def uncount_validation(trainer: L.Trainer) -> None:
    """Put the counters where they stood after the step, before the validation that is going on.

    What is saved then is what any save after a step is; Lightning takes a save within a validation, or after one, for
    something else.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.current, progress.total):
        counts.completed -= 1
