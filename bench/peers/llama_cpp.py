#!/usr/bin/env python3
"""Holds Maquette's GGUF files and engine against llama.cpp's.

    python bench/peers/llama_cpp.py --maquette target/release/maquette --llama llama.cpp/build/bin \
        --model stories260k --text valid.txt --out /tmp/agreement

For every number format: the model is written by `maquette convert` and, from our 32-bit file, by
llama-quantize. Both files are read by both programs. They agree if the perplexities over --text (pieces of
--context tokens) differ by at most half a per cent. The greedy continuation of --prompt is compared too:
it is told, not judged, where a format rounds activations in another way than ours.
Only Python's library is needed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

# Our names, and llama-quantize's.
TYPES = {
    "f32": None,
    "f16": "F16",
    "bf16": "BF16",
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k": "Q5_K_S",
    "q4_0": "Q4_0",
    "q4_k_m": "Q4_K_M",
}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout.decode(errors="replace")


def last_object(text):
    return json.loads(text.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--maquette", type=pathlib.Path, required=True)
    parser.add_argument("--llama", type=pathlib.Path, required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--pieces", type=int, default=24)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    files = []
    for ours, theirs in TYPES.items():
        path = args.out / f"ours-{ours}.gguf"
        extra = ["--tokenizer", args.tokenizer] if args.tokenizer else []
        run(args.maquette, "convert", args.model, path, "--quantize", ours, *extra)
        files.append((ours, "maquette", path))
        if theirs:
            path = args.out / f"theirs-{ours}.gguf"
            run(args.llama / "llama-quantize", args.out / "ours-f32.gguf", path, theirs)
            files.append((ours, "llama.cpp", path))

    failed = False
    print("| format | written by | perplexity, ours | llama.cpp's | difference | greedy text |")
    print("|---|---|---|---|---|---|")
    for name, writer, path in files:
        measured = last_object(run(
            args.maquette, "bench", "perplexity", "--model", path, "--text", args.text,
            "--context", args.context, "--pieces", args.pieces, "--peer", args.llama / "llama-perplexity",
            "--json"))["results"][0]
        ours = last_object(run(
            args.maquette, "generate", path, "--prompt", args.prompt, "--temperature", 0,
            "--max-tokens", args.tokens, "--json"))["outputs"][0]["text"]
        theirs = run(
            args.llama / "llama-completion", "-m", path, "-p", args.prompt, "-n", args.tokens, "--temp", 0,
            "-no-cnv", "--no-display-prompt", "--simple-io", "-c", 512, "-t", 2)
        theirs = theirs.removesuffix("\n\n").replace(" [end of text]", "")
        same = 0
        while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
            same += 1
        text = "the same" if ours.strip() == theirs.strip() else f"the same for {same} of {len(ours)} characters"
        difference = measured["ratio"] - 1
        failed |= abs(difference) > 0.005
        print(f"| {name} | {writer} | {measured['ours']:.4f} | {measured['peer']:.4f} "
              f"| {100 * difference:+.3f} % | {text} |", flush=True)
    sys.exit("perplexities differ by more than half a per cent" if failed else 0)


if __name__ == "__main__":
    main()
