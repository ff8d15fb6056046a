"""Values that no option is meant for, and paths that are not what they should be."""

import gzip
import json
import os
import shutil
import socket
import stat

NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "-0.0", "1e-320", "1e400", "99999999999999999999", "4294967296", "0x10", "1_0",
    "", " ", "½", "٣", "true", "null", "[1]", "{}", "1,5", "1e3", "None", "8.5",
)  # fmt: skip
TEXTS = (
    "", " ", "-", "--", "=", "a=b", "=b", "\n", "a\nb", "\t", "\x1b[31m", "ü", "\udcff", "🙂", "\u202e", "a" * 5000,
    "../x", "%s", "{}", "{0}", "[", "]", "{a: [", "&a *a", "!!python/object:os.system x", "${oc.env:HOME}",
    "${x", "*", "**", "{1..99999999999}", "[a", "1/0", "0/3", "4/3", "99/x", "0MB", "-5MB", "infGB", "nansamples",
    "1e30samples", "main:", ":x", "os.system", "os:system", "a b", "null", "cuda:99", "meta", "A" * 300, "٣",
)  # fmt: skip
ADDRESSES = (
    "http://127.0.0.1:9/a.tar", "https://user:pass@127.0.0.1:9/a.wav?X-Amz-Signature=s", "s3://", "s3://b/k.tar",
    "gs://x", "file:///etc/passwd", "file://", "http://", "://", "hf://x/y", "pipe:cat /etc/passwd", "pipe:",
    "ftp://127.0.0.1:9/x", "OWNER/NAME", "a/b/c", "data:,x", "memory://x", "zip://x::y", "C:\\a.wav",
)  # fmt: skip


def make_paths(folder):
    """Add odd files and folders to a folder of good ones, and return all paths worth trying, from its parent on.

    Args:
        folder: holds ``audio.wav``, and the folders ``run``, ``exported``, ``encoder`` and ``llm``.
    """
    put = folder.joinpath
    (put("empty")).touch()
    (put("empty.wav")).touch()
    (put("empty.tar")).touch()
    (put("empty.yaml")).touch()
    (put("empty.json")).touch()
    put("folder").mkdir()
    put("folder.tar").mkdir()
    put("folder.yaml").mkdir()
    put("noise.bin").write_bytes(bytes(range(256)) * 40)
    put("noise.yaml").write_bytes(bytes(range(256)))
    put("latin.yaml").write_bytes("model: {abstractor: Größe}".encode("latin-1"))
    put("list.yaml").write_text("- 1\n- 2\n")
    put("word.yaml").write_text("abc")
    put("keys.yaml").write_text("1: 2\nnull: 3\n[a]: 4\n")
    put("bomb.yaml").write_text("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)))  # fmt: skip
    put("deep.json").write_text("[" * 100_000)
    put("deep.yaml").write_text("[" * 3_000)
    put("nan.json").write_text('{"text": NaN, "duration": Infinity, "audio_filepath": 5}')
    put("rows.jsonl").write_text('5\n"a"\n[]\n{}\nnull\n')
    put("table.csv").write_text("path,text\n,\n/dev/null,a\n/dev/zero,b\n../../etc/passwd,c\n")
    put("scp").write_text("a cat /etc/passwd |\n")
    put("config.json").write_text(json.dumps({"model_type": "fastslm"}))
    put("packed.gz").write_bytes(gzip.compress(b"a" * 10_000))
    put("model.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\0" * 40)
    put("weights.pt").write_bytes(b"PK\3\4" + b"\0" * 30)
    put("weights.ckpt").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    os.symlink("nowhere", put("broken-link"))
    os.symlink("loop", put("loop"))
    put("circle").mkdir()
    os.symlink(put("circle"), put("circle", "again"))
    for suffix in ("", ".yaml", ".tar", ".jsonl", ".csv", ".wav", ".ckpt"):
        os.mkfifo(put(f"fifo{suffix}"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(put("socket")))
    put("unreadable").write_text("x")
    put("unreadable").chmod(0)
    for name in ("b\udcff", "line\nbreak"):
        shutil.copy(put("audio.wav"), put(name))
    for name in ("run", "exported", "encoder", "llm"):
        torn = put(f"torn-{name}")
        shutil.copytree(put(name), torn, symlinks=True)
        files = sorted(path for path in torn.rglob("*") if path.is_file() and not path.is_symlink())
        for path in files[::2]:
            path.unlink()
        cut = put(f"cut-{name}")
        shutil.copytree(put(name), cut, symlinks=True)
        for path in cut.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name, minor in (("null", 3), ("zero", 5), ("full", 7)):
        if os.getuid() == 0:  # who may replace /dev/null gets devices of their own
            os.mknod(put(name), stat.S_IFCHR | 0o666, os.makedev(1, minor))
        else:
            put(name).symlink_to(f"/dev/{name}")
    for name in ("run", "exported", "encoder", "llm"):  # a folder of a model with a pipe where a file is looked for
        piped = put(f"piped-{name}")
        shutil.copytree(put(name), piped, symlinks=True)
        for path in sorted(path for path in piped.rglob("*") if path.is_file() and path.suffix != ".safetensors"):
            path.unlink()
            os.mkfifo(path)
    here = [os.path.join(folder.name, path.name) for path in sorted(folder.iterdir())]
    missing = [
        os.path.join(folder.name, name)
        for name in ("missing", "empty/x", "n" * 300, "x/" * 3000, "a\u0301", "folder/", "a\0b")
    ]
    return [
        *here,
        *missing,
        "/proc/version",
        "/dev/stdin",
        "~no-such-user/x",
        ".",
        "..",
        "./",
        "x/../y",
    ]
