"""Run as a process that has no fastslm: loads exported folders with transformers, and writes down what they say.

usage: python outside.py INPUTS.pt OUTPUTS.pt; the inputs name each folder and the class that loads it.
"""

import importlib.abc
import sys


class NotInstalled(importlib.abc.MetaPathFinder):
    """Makes imports of what a user of an exported folder need not have fail."""

    names = ("fastslm", "lightning", "jsonargparse", "webdataset", "omegaconf", "platformdirs", "their_pooling")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(1)
given, found = torch.load(sys.argv[1], weights_only=False), {}
for key, job in given.items():
    folder = job["folder"]
    if job["kind"] == "llm":
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            logits = model(inputs_embeds=job["embeds"]).logits
            answer = model.generate(inputs_embeds=job["embeds"], max_new_tokens=6)
        result = {"logits": logits, "answer": answer, "words": tokenizer.convert_ids_to_tokens(job["ids"])}
    elif job["kind"] == "pipeline":
        pipe = transformers.pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True)
        recordings, model, info = [one / np.float32(32768) for one in job["audio"]], pipe.model, {}
        refused = []
        for wrong in ({"chunk_length_s": 30}, {"return_timestamps": True}):
            try:
                pipe(recordings[0], **wrong)
            except ValueError as error:
                refused.append(str(error))
        result = {
            "alone": [pipe(one)["text"] for one in recordings],
            "together": [one["text"] for one in pipe(recordings, batch_size=len(recordings))],
            "short": pipe(recordings[0], max_new_tokens=1)["text"],
            "ast": pipe({"raw": recordings[1], "sampling_rate": 16_000}, task="ast", language="Korean")["text"],
            "refused": refused,
        }
    else:
        auto = getattr(transformers, job.get("auto", "AutoModel"))
        model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        inputs = processor(job["audio"], sampling_rate=16_000, **job.get("request", {}))
        with torch.no_grad():
            logits = model(**inputs).logits
        result = {
            "logits": logits,
            "ids": inputs["input_ids"],
            "answer": model.generate(**inputs, max_new_tokens=6),
            "beams": model.generate(**inputs, max_new_tokens=6, num_beams=2),
            "free": model.generate(**inputs),
            "embeds": model.prompt_embeds(**inputs),
            "text": processor.batch_decode(model.generate(**inputs, max_new_tokens=6), skip_special_tokens=True),
            "dtypes": {name: str(p.dtype) for name, p in model.named_parameters()},
            "training": model.training,
            "loss": model(**inputs, labels=inputs["input_ids"]).loss.item(),
        }
        if "save" in job:
            model.save_pretrained(job["save"])
            processor.save_pretrained(job["save"])
            again = transformers.AutoModel.from_pretrained(job["save"], trust_remote_code=True)
            inputs = transformers.AutoProcessor.from_pretrained(job["save"], trust_remote_code=True)(
                job["audio"], sampling_rate=16_000
            )
            with torch.no_grad():
                result["logits_again"] = again(**inputs).logits
    found[key] = {**result, "class": type(model).__name__, "info": {k: sorted(map(str, v)) for k, v in info.items()}}
found["modules"] = sorted(name for name in sys.modules if name.split(".")[0] in NotInstalled.names)
torch.save(found, sys.argv[2])
