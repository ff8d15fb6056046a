"""Audio and a request to model inputs: the prompt as in training, the samples as int16 at 16 kHz."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, FeatureExtractionMixin, ProcessorMixin

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.contracts import Task
from fastslm.export.remote.token_counts import num_tokens
from fastslm.path.prompt import AUDIO, Prompter
from fastslm.path.request import Request
from fastslm.path.template import check_template


class FastSLMFeatureExtractor(FeatureExtractionMixin):  # type: ignore[misc]
    """Recordings to int16 samples, a row each; the spectrogram is made by the model, on its device.

    Args:
        sampling_rate: samples per second that the model takes.
        chunk_length: seconds of audio that engines measure memory with; a recording may have any length.
    """

    model_input_names = ("input_features", "audio_feature_lens")
    padding_value = 0  # of a batch that a pipeline makes

    def __init__(self, sampling_rate: int = SAMPLE_RATE_HZ, chunk_length: float = 30.0, **others: Any) -> None:
        super().__init__(**others)
        self.sampling_rate = sampling_rate
        self.chunk_length = chunk_length

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        return_attention_mask: bool | None = None,
    ) -> BatchFeature:
        """Return ``input_features``, which are samples, int16 ``[R, N]``, and ``audio_feature_lens`` ``[R]``.

        The second says how many samples a recording has; zeros stand behind its end.

        Args:
            audio: one recording or several: floats in -1..1 or int16, ``[N]``, NumPy or torch, mono.
            sampling_rate: samples per second; None means that of the model.
            return_tensors: ``pt``, which is what comes out anyway.
            return_attention_mask: of no matter, for ``audio_feature_lens`` says what is no padding.

        Raises:
            ValueError: the rate is another, a recording is empty or has more than one channel, or is not finite.
        """
        if return_tensors != "pt":
            raise ValueError(f"This processor returns PyTorch tensors (pt), and not {return_tensors!r}.")
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"sampling_rate: {sampling_rate!r} must be {self.sampling_rate}, a number; resample other audio first."
            )
        several = isinstance(audio, (list, tuple)) and len(audio) > 0 and np.ndim(audio[0]) > 0
        samples = [_int16(recording) for recording in (audio if several else [audio])]
        lengths = torch.tensor([len(recording) for recording in samples], dtype=torch.int64)
        rows = pad_sequence([torch.from_numpy(recording) for recording in samples], batch_first=True)
        return BatchFeature({"input_features": rows, "audio_feature_lens": lengths})


#: Floats beyond are surely no samples in -1..1: recordings that were made too loud stay below.
_LOUDEST = 16.0


def _int16(recording: Any) -> np.ndarray:
    if isinstance(recording, (str, bytes, Mapping)):
        raise ValueError(
            f"A recording must be an array of samples, and this one is a {type(recording).__name__}: read files first"
            " (soundfile.read), and of datasets' Audio give ['array'] with its ['sampling_rate']."
        )
    if isinstance(recording, Tensor):  # NumPy has no bfloat16, and takes none with gradients
        recording = recording.detach().cpu()
        recording = recording.double() if recording.is_floating_point() else recording
    values = np.asarray(recording)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"A recording must be one channel of samples, [N]; this one has the shape {values.shape}.")
    if values.dtype == np.int16:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"A recording must hold floats in -1..1 or int16, and this one holds {values.dtype}.")
    if not np.isfinite(values).all():
        raise ValueError("A recording holds values that are not finite.")
    loudest = float(np.abs(values).max())
    if loudest > _LOUDEST:
        raise ValueError(
            f"Floats must be in -1..1, and these reach {loudest:.6g}: divide them by 32768, or give them as int16."
        )
    return np.clip(np.round(values.astype(np.float64) * 32768.0), -32768, 32767).astype(np.int16)


class FastSLMProcessor(ProcessorMixin):  # type: ignore[misc]
    """Feature extractor and tokenizer as one.

    Args:
        feature_extractor: for the audio.
        tokenizer: for the text, with the special tokens that mark audio and task.
        enable_thinking: passed to chat templates that know it (Qwen3).
        tasks: what can be asked, each with the values of a ``Task``.
        token_counts: how many tokens a recording has, see ``token_counts``; None where that follows what it holds.
        needs_chat_template: a tokenizer without one is refused; folders of before do not say.

    Raises:
        ValueError: the chat template has got lost.
    """

    audio_token = AUDIO

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        enable_thinking: bool = False,
        chat_template: Any = None,
        tasks: Sequence[Mapping[str, Any]] = (),
        token_counts: Mapping[str, Any] | None = None,
        needs_chat_template: bool = False,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.enable_thinking = enable_thinking
        self.tasks = [dict(values) for values in tasks]
        self.token_counts = token_counts
        self.needs_chat_template = needs_chat_template
        if needs_chat_template:
            check_template(tokenizer)
        self._prompter = Prompter(tokenizer, enable_thinking)

    def __call__(
        self,
        audio: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        task: str | None = None,
        language: str | None = None,
        sampling_rate: int | None = None,
        audios: Any = None,
        **others: Any,
    ) -> BatchFeature:
        """Return inputs for ``generate``: one row for each recording, or one for each whole prompt.

        Args:
            audio: one recording or a list of them, see ``FastSLMFeatureExtractor``.
            text: words in place of the task's own, one for all or one for each; for ``sqqa`` the question. Without a
                task, text with ``audio_token`` in it is whole prompts, where it becomes as many as the recording in
                its place has speech tokens; with a task, whatever it spells is words.
            task: ``asr``, which None means too, ``ast`` (translation), ``ssum`` (summary), ``sqqa`` (the answer to a
                question), or another of this model's tasks.
            language: what ``ast`` translates into, in English (``Korean``).
            sampling_rate: of the audio; must be 16000.
            audios: what SGLang calls the audio of whole prompts. It puts features of several requests end to end, so
                they come out as the samples of all recordings, end to end, ``[N]``.
            others: ``return_tensors="pt"``, ``padding=True``, ``truncation=False`` and ``add_special_tokens=False``,
                which is what comes out anyway, and for whole prompts ``return_text_replacement_offsets``, by which vLLM
                asks for the places of the recordings.

        Raises:
            ValueError: recordings and texts or marks differ in number, or the request makes no sense.
        """
        located = others.pop("return_text_replacement_offsets", False)
        given = audio if audios is None else audios
        if given is None:
            raise ValueError("Give audio; for text alone use the tokenizer's chat template and the LLM.")
        anyway: dict[str, tuple[Any, ...]] = {"return_tensors": ("pt",), "padding": (True, "longest")}
        anyway |= {"truncation": (False,), "add_special_tokens": (False,)}
        if refused := [name for name, value in others.items() if value not in anyway.get(name, ())]:
            raise ValueError(
                f"This processor returns PyTorch tensors of padded prompts, and takes no {', '.join(refused)}."
            )
        features = self.feature_extractor(given, sampling_rate)
        count = len(features["audio_feature_lens"])
        texts = list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text] * count
        if not all(words is None or isinstance(words, str) for words in texts):
            raise ValueError(f"text is {text!r:.60}, and is to be a string, or a list of them.")
        if task is None and any(AUDIO in (words or "") for words in texts):
            prompts = [text] if isinstance(text, str) else [words or "" for words in texts]
            return self._whole(prompts, features, located, audios is not None)
        if len(texts) != count:
            raise ValueError(f"There are {count} recordings and {len(texts)} texts.")
        return BatchFeature({**self.prompts(texts, task or "asr", language), **features})

    def apply_chat_template(self, conversation: Any, *arguments: Any, **named: Any) -> Any:
        """Return what ``ProcessorMixin`` makes of turns of text.

        Raises:
            ValueError: a turn has parts, such as audio: templates of LLMs know texts alone, and no tasks.
        """
        turns = [turn for item in conversation for turn in (item if isinstance(item, (list, tuple)) else [item])]
        if any(isinstance(turn, Mapping) and isinstance(turn.get("content"), (list, tuple)) for turn in turns):
            raise ValueError(
                "apply_chat_template takes turns of text, and this one has parts. Ask about a recording by"
                ' processor(audio, sampling_rate=16000, task="sqqa", text="..."), which makes the whole prompt.'
            )
        return super().apply_chat_template(conversation, *arguments, **named)

    def prompts(
        self, texts: Sequence[str | None] = (None,), task: str = "asr", language: str | None = None
    ) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` ``[B, L]`` of B prompts about one recording each.

        Arguments are those of ``__call__``.
        """
        around = [self._request(words, task, language).ids(self._prompter) for words in texts]
        return self._padded([[*before, self._prompter.audio_id, *after] for before, after in around])

    def prompt_text(self, text: str | None = None, task: str = "asr", language: str | None = None) -> str:
        """Return a whole prompt about one recording, which ``audio_token`` marks, as SGLang takes it.

        Arguments are those of ``__call__``.

        Raises:
            ValueError: words spell a control token, which they would be in a text.
        """
        return self._prompter.prompt_text(self._request(text, task, language).messages())

    def _request(self, text: str | None, task: str, language: str | None) -> Request:
        for name, value in (("task", task), ("language", language)):
            if not (value is None or isinstance(value, str)):
                raise ValueError(f"{name} is {value!r:.60}, and one for all recordings of a call. Call it for each.")
        brought = {values["name"]: Task(**values) for values in self.tasks}
        return Request(task, text, language, brought.get(task))

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self._prompter.stop_ids[0], np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):  # padded at the left, as generation needs
            ids[i, longest - len(row) :], mask[i, longest - len(row) :] = row, 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def _whole(self, texts: Sequence[str], features: BatchFeature, located: bool, end_to_end: bool) -> BatchFeature:
        """Return whole prompts in which each mark has become as many as its recording has tokens."""
        lengths = features["audio_feature_lens"]
        marks = sum(words.count(AUDIO) for words in texts)
        if marks != len(lengths):
            raise ValueError(f"There are {len(lengths)} recordings, and the prompts mark {marks} with {AUDIO}.")
        replacements = [self.replace_audio_token(features, i) for i in range(len(lengths))]
        counts = iter([len(replacement) // len(AUDIO) for replacement in replacements])
        rows = [
            [id_ for id_ in ids for _ in range(next(counts) if id_ == self.audio_token_id else 1)]
            for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ]
        inputs = {**self._padded(rows), **features}
        if located:
            inputs["text_replacement_offsets"] = self.get_text_with_replacements(
                list(texts), audio_replacements=replacements
            )[1]
        if end_to_end:
            recordings = zip(features["input_features"], lengths.tolist(), strict=True)
            inputs["input_features"] = torch.cat([samples[:length] for samples, length in recordings])
        return BatchFeature(inputs)

    def replace_audio_token(self, audio_inputs: Mapping[str, Any], audio_idx: int, **_others: Any) -> str:
        """Return as many marks as a recording has tokens.

        Raises:
            ValueError: the number is not known beforehand.
        """
        if self.token_counts is None:
            raise ValueError("The compressor gives as many tokens as the audio holds, so nobody knows beforehand.")
        return str(AUDIO * num_tokens(int(audio_inputs["audio_feature_lens"][audio_idx]), **self.token_counts))

    @property
    def audio_token_id(self) -> int:
        """The id of a recording's mark."""
        return self._prompter.audio_id

    @property
    def model_input_names(self) -> list[str]:
        """Names of what ``__call__`` returns."""
        return ["input_ids", "attention_mask", "input_features", "audio_feature_lens"]
