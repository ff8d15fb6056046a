"""Run by a Python that has vLLM and no fastslm: writes down what vLLM says.

usage: python in_vllm.py JOB.json OUT.json; arrays that the job names lie beside it.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind")

if __name__ == "__main__":
    import numpy as np
    import torch
    from vllm import LLM, SamplingParams

    given = Path(sys.argv[1])
    job = json.loads(given.read_text())
    llm = LLM(job["folder"], dtype="float32", enforce_eager=True, max_num_seqs=4, **job["options"])
    found = []
    for asked in job["requests"]:
        sampling = SamplingParams(temperature=0, max_tokens=asked["limit"], min_tokens=asked.get("least", 0))
        prompts = []
        for prompt in asked["prompts"]:
            if "embeds" in prompt:
                prompts.append({"prompt_embeds": torch.load(given.parent / prompt["embeds"])})
                continue
            audio = [np.load(given.parent / name) for name in prompt["audio"]]
            prompts.append(
                {"prompt_token_ids": prompt["ids"]} | ({"multi_modal_data": {"audio": audio}} if audio else {})
            )
        answers = llm.generate(prompts, sampling, use_tqdm=False)
        found.append(
            [{"prompt": list(one.prompt_token_ids or ()), "ids": list(one.outputs[0].token_ids)} for one in answers]
        )
    Path(sys.argv[2]).write_text(json.dumps(found))
