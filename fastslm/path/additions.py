"""What training may add to the path, as steps that change nothing: a model in use adds none of it."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fastslm.contracts import Encoder
from fastslm.path.batch import Batch, Dialogue, Int64Array
from fastslm.path.feature_masks import FeatureMasks
from fastslm.path.windows import Windows


class Additions:
    """Steps between the stations of the path; ``fastslm.training.additions`` has those that do something.

    Attributes:
        alignment: the part of it that has weights; a part of the model while it trains.
        reads_answers: the LLM reads the answers; else the alignment loss trains alone.
    """

    alignment: nn.Module | None = None
    reads_answers: bool = True

    def masks(self, batch: Batch, windows: Windows, encoder: Encoder, context_samples: int) -> FeatureMasks | None:
        """Return what is hidden of each window's features in the batch's epoch; None where nothing is."""
        return None

    def frames(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """Return the frames ``[W, F, D_enc]`` that the abstractor gets, ``num_frames`` ``[W]`` of them real."""
        return frames

    def dialogues(self, batch: Batch) -> Sequence[Dialogue]:
        """Return the dialogues whose embeddings the LLM gets."""
        return batch.dialogues

    def tokens(self, tokens: Tensor) -> Tensor:
        """Return the speech tokens ``[W, K, D_llm]`` that the LLM gets."""
        return tokens

    def align(
        self,
        batch: Batch,
        rows: Sequence[Int64Array],
        tokens: Tensor,
        embed: Callable[[Tensor], Tensor],
        classes: Int64Array | None,
    ) -> tuple[Tensor | None, int]:
        """Return a summed loss of speech tokens against transcripts, and the ids behind it; None and 0 for none."""
        return None, 0


#: What a model in use adds.
NOTHING = Additions()
