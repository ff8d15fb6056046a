"""The compressor in the authors' released checkpoint (``Stage3_FastSLM.pt``): its names, in those of ``HTA``."""

from collections.abc import Mapping

from torch import Tensor

from fastslm.errors import CheckpointError

_SPEECH = "encoder."
_MODULES = {
    "compressor1": "stages.0",
    "compressor2": "stages.1",
    "compressor3": "stages.2",
    "compressor": "final",
    "stage1": "downsamplers.0",
    "stage2": "downsamplers.1",
    "out_attn": "refinement",
    "llm_proj": "projector",
}
_PARTS = {
    "attn": "self_attention",
    "cross_attn": "cross_attention",
    "norm1": "self_norm",
    "norm2": "cross_norm",
    "q_ln": "query_norm",
    "kv_ln": "context_norm",
    "ln_post": "norm",
    "q": "query",
    "k": "key",
    "v": "value",
    "out_proj": "out",
}
_COMPUTED = {"q_pos_embeds": "query_positions", "kv_pos_embeds": "key_positions"}  # sinusoids, which HTA makes itself


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of ``HTA(positions="index")`` that a released state dict holds.

    Args:
        state: the whole checkpoint, or any part of it; the speech encoder (``encoder.whisper.``) and the LLM
            (``llm.``) are passed over.

    Raises:
        CheckpointError: a name on the speech side belongs to no known module.
    """
    ours = {}
    for name, value in state.items():
        module, *parts = name.removeprefix(_SPEECH).split(".")
        if not name.startswith(_SPEECH) or module == "whisper" or parts[-1:] in ([c] for c in _COMPUTED):
            continue
        if module not in _MODULES:
            raise CheckpointError(
                f"{name!r} is no name of the released FastSLM checkpoint, whose compressor consists of"
                f" {', '.join(_MODULES)}. Give its plain state dict."
            )
        renamed = ".".join([_MODULES[module], *(_PARTS.get(part, part) for part in parts)])
        ours[renamed] = value.squeeze(0) if renamed.endswith(".query") else value  # queries are [1, n, d] there
    return ours


def released_name(name: str) -> str:
    """Return what the release calls a weight or table of ``HTA``: ``encoder.compressor1.query`` for ``stages.0.query``.

    Raises:
        KeyError: the release has no such module.
    """
    inverse = {ours: theirs for theirs, ours in (_PARTS | _COMPUTED).items()}
    for theirs, ours in _MODULES.items():
        if name.startswith(f"{ours}."):
            parts = name.removeprefix(f"{ours}.").split(".")
            if parts != ["query"]:  # a compressor's learnable queries; anywhere else it is a matrix
                parts = [inverse.get(part, part) for part in parts]
            return ".".join([f"{_SPEECH}{theirs}", *parts])
    raise KeyError(name)
