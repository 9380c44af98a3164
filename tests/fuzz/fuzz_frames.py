"""Fuzz frames, CARs and records: `PYTHONPATH=tests python -m fuzz.fuzz_frames --seconds N`; see `make fuzz`.

Exit code 0: nothing was found. 1: something was; the input is saved and told. 2: the fuzzer itself could not run.
The fuzzer works in a child process, so that a crash or a hang of native code is a finding too.
"""

import argparse
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import print_exc
from typing import Any, Final

FOUND: Final = {70: "it hangs", 71: "it needs too much memory", 77: "a promise is broken or an exception got out"}
"""libFuzzer's exit codes. A signal's number is a finding too."""
MAX_BYTES: Final = 32 * 1024
"""Of one input. The largest seed has a quarter of it; larger ones only make the work slow."""
SHOWN: Final = 2048
"""Bytes of a finding that are printed."""
EVERYTHING: Final[dict[str, Any]] = {
    "reply": {"root": {"uri": "at://a", "cid": "b"}, "parent": {"uri": "at://c", "cid": "d"}},
    "embed": {
        "$type": "app.bsky.embed.recordWithMedia",
        "record": {"$type": "app.bsky.embed.record", "record": {"uri": "at://e", "cid": "f"}},
        "media": {
            "$type": "app.bsky.embed.images",
            "images": [{"alt": "A map of the town."}],
            "external": {"uri": "https://a.example", "title": "Budget", "description": "What it costs."},
        },
    },
    "facets": [
        {"features": [{"$type": f"app.bsky.richtext.facet#{kind}", name: "value"}]}
        for kind, name in (("tag", "tag"), ("link", "uri"), ("mention", "did"))
    ],
    "tags": ["tax"],
    "labels": {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "gore"}]},
}
"""Fields of a post, by hand: few recorded posts have them."""
TOLD_EVERY: Final = 15.0
"""Seconds between two lines of progress."""


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="Fuzz frames, CARs and records.")
    parser.add_argument("--seconds", type=int, default=600, help="how long to look")
    parser.add_argument("--planted", default="", choices=["", "car", "type", "text"], help="put in a bug of this kind")
    parser.add_argument(
        "--findings", type=Path, default=Path(".fuzz"), help="the folder for inputs that break something"
    )
    parser.add_argument("--replay", type=Path, help="only take this input")
    parser.add_argument("--seeds", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.seeds:
            fuzz(args.seeds, args.findings, args.seconds, args.planted)
        return replay(args.replay, args.planted) if args.replay else watch(args.findings, args.seconds, args.planted)
    except Exception:  # noqa: BLE001  (exit code 1 is for findings only)
        print_exc()
        return 2


def watch(findings: Path, seconds: int, planted: str) -> int:
    """Run the fuzzer in a child; tell of its progress and of what it found."""
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        for at, seed in enumerate(seeds()):
            Path(folder, f"{at:04d}").write_bytes(seed)
        options = ["--seeds", folder, "--findings", str(findings), "--seconds", str(seconds), "--planted", planted]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CIVICSKY_")}
        child = subprocess.Popen(
            [sys.executable, "-m", "fuzz.fuzz_frames", *options],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=clean,
        )
        assert child.stderr is not None
        for line in child.stderr:
            if "\tNEW " not in line and "\tREDUCE " not in line:
                sys.stderr.write(line)
        code = child.wait()
    took = time.monotonic() - began
    if code == 0:
        print(f"fuzz: nothing was found in {took:.0f} s")
        return 0
    if code > 0 and code not in FOUND:
        print(f"fuzz: the fuzzer ended with exit code {code}", file=sys.stderr)
        return 2
    print(f"fuzz: found after {took:.0f} s: {FOUND.get(code, f'it dies of signal {-code}')}")
    for file in sorted(set(findings.iterdir()) - before):
        content = file.read_bytes()
        more = f" ... ({len(content)} bytes)" if len(content) > SHOWN else ""
        print(f"{file}\n{content[:SHOWN].hex()}{more}")
    return 1


def fuzz(folder: Path, findings: Path, seconds: int, planted: str) -> None:
    """Look for inputs that break something; ends the process."""
    import atheris  # noqa: PLC0415  (only the child needs it)

    with atheris.instrument_imports(include=["civicsky"]):
        from fuzz import target  # noqa: PLC0415
    from fuzz.mutate import mutate  # noqa: PLC0415

    if planted:
        target.plant(planted)
    spare = [file.read_bytes() for file in sorted(folder.iterdir())]
    began = told = time.monotonic()
    runs = 0

    def one(data: bytes) -> None:
        nonlocal runs, told
        runs += 1
        target.check(data)
        now = time.monotonic()
        if now - told >= TOLD_EVERY:
            told = now
            ends = ", ".join(f"{name.strip()} {n}" for name, n in sorted(target.seen.items()))
            print(f"fuzz: {now - began:.0f} s, {runs} runs: {ends}", file=sys.stderr, flush=True)

    def change(data: bytes, most: int, seed: int) -> bytes:
        return mutate(data, most, seed, atheris.Mutate, spare)

    options = [f"-artifact_prefix={findings}/", f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}"]
    bounds = ["-timeout=10", "-rss_limit_mb=2048", "-len_control=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, *bounds, str(folder)], one, custom_mutator=change)
    atheris.Fuzz()


def replay(file: Path, planted: str) -> int:
    """Take one input, without the fuzzer."""
    from fuzz import target  # noqa: PLC0415

    if planted:
        target.plant(planted)
    try:
        target.check(file.read_bytes())
    except Exception:  # noqa: BLE001  (whatever gets out is the finding)
        print_exc()
        return 1
    return 0


def seeds() -> Iterator[bytes]:
    """Frames of the packaged recording, one of each shape, and a post that has all that a post can have."""
    import cbor2  # noqa: PLC0415

    from civicsky.decode import decode  # noqa: PLC0415
    from civicsky.frames import read_frames, sample_file  # noqa: PLC0415
    from support.world import commit, post  # noqa: PLC0415

    known = set()
    for data in read_frames(sample_file()):
        event = decode(data)
        records = [cbor2.loads(op.block) for op in event.posts if op.block]
        shape = (
            event.outcome,
            tuple((op.action, op.fault) for op in event.posts),
            tuple((tuple(record), str(record.get("embed", {}).get("$type"))) for record in records),
        )
        if shape not in known and len(data) <= MAX_BYTES // 4:
            known.add(shape)
            yield data
    yield commit(1, [("create", "3n2vmmzh27s24", post("The city council votes on the budget #tax.", **EVERYTHING))])


if __name__ == "__main__":
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, line_buffering=True)
    sys.exit(main())
