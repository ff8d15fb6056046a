"""Train speech language models on long audio.

    tar shard -> Sample -> Batch -> log-mel windows -> encoder frames -> abstractor tokens -> spliced with text -> LLM

Start with ``fastslm/model.py``, the path from audio to loss; ``fastslm/contracts.py`` says what plug-ins promise.
The rooms beside this folder in the checkout (modules/, datamodules/, callbacks/, configs/) are its subpackages.
"""

__version__ = "0.1.0"
