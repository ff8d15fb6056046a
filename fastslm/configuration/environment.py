"""``${...}`` in configurations: other settings, and for those of one's own, not of a model, the environment."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from omegaconf.resolvers import oc

from fastslm.errors import ConfigError

#: What lies beside the configuration of a run, of one of its checkpoints, or of an exported folder.
_OF_A_MODEL = ("checkpoints", "checkpoint.json", "config.json", "*.safetensors", "*.ckpt", "*.pt")
_ENVIRONMENT = "oc.env"


@contextlib.contextmanager
def interpolated(configs: Sequence[str]) -> Iterator[None]:
    """Within it, what configurations take from elsewhere (``${...}``) is put in, if all of them are one's own.

    Args:
        configs: the files of a command. As soon as one lies in a run or a model, nothing reads the environment:
            another file may lead there, and where a text came from is no longer known when it is looked up.

    Raises:
        ConfigError: the environment is read all the same, or there is nothing to put in.
    """
    foreign = next((path for path in configs if _came_with_a_model(Path(path))), None)

    def refuse(name: str, *_: str) -> str:
        raise PermissionError(
            f"{foreign} is the configuration of a run, which may be anybody's, and so nothing beside it may read the"
            f" environment, as ${{{_ENVIRONMENT}:{name}}} does. Put the value there."
        )

    try:
        if foreign is not None:
            OmegaConf.register_new_resolver(_ENVIRONMENT, refuse, replace=True)
        yield
    except OmegaConfBaseException as error:
        if isinstance(error, InterpolationResolutionError) and isinstance(error.__cause__, PermissionError):
            raise ConfigError(f"--config {error.__cause__}") from error
        raise ConfigError(f"{error.full_key}: {_told(error)}") from error
    finally:
        if foreign is not None:
            OmegaConf.register_new_resolver(_ENVIRONMENT, oc.env, replace=True)


def _told(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    name = re.match(r"Interpolation key '\.*([^']*)' not found", first)
    if name is None:
        return first
    return (
        f"it is to be that of {name[1]}, which is no setting here. A configuration file names settings in full, as in"
        " ${trainer.max_steps}; the command line takes values."
    )


def _came_with_a_model(config: Path) -> bool:
    return any(next(Path(os.path.realpath(config)).parent.glob(name), None) for name in _OF_A_MODEL)
