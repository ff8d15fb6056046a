"""Parses every shipped config with the installed package, from a folder that is not the checkout."""

import subprocess
import sys

import fastslm
from fastslm.configuration.find import shipped_configs

assert "site-packages" in fastslm.__file__, f"this is the checkout, not the wheel: {fastslm.__file__}"
folder = shipped_configs()
names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))
assert "hta.yaml" in names, names
axes = [name for name in names if "/" in name]
compressors = [name for name in names if "/" not in name and name != "base.yaml"]
large = ["encoder/whisper_large_v3.yaml", "llm/qwen3_4b.yaml"]
runs = [[name] for name in compressors]
runs += [["hta.yaml", name] for name in axes if not name.startswith(("encoder/", "llm/"))]
runs += [["hta.yaml", *large, name] for name in axes if name.startswith(("encoder/", "llm/", "hardware/"))]
for run in runs:
    flags = [flag for name in run for flag in ("--config", f"configs/{name}")]
    subprocess.run(["fastslm", "fit", *flags, "--print_config"], check=True, stdout=subprocess.DEVNULL)
    print("parses:", *run, file=sys.stderr)
print(f"{len(runs)} passed, 0 failed")
