"""The Python side of `maquette bench tokenize`.

    python tokenize.py tiktoken|tokenizers TOKENIZER.json TEXT [--threads N] [--precision P]

Encodes the text again and again and answers on stdout, one JSON object per line: first
`{"name", "parameters"}`, the number of ids being the parameters that must agree; then for every line
on stdin, a number of times, `{"seconds", "loss", "peak_mb"}`. It ends with its input.
"""

import json
import os
import sys
import time

kind, tokenizer, text = sys.argv[1:4]
os.environ["RAYON_NUM_THREADS"] = "1"
text = open(text, encoding="utf-8", newline="").read()


def byte_of():
    """GPT-2's visible characters back to bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, free = {chr(byte): byte for byte in printable}, 256
    for byte in range(256):
        if byte not in printable:
            table[chr(free)] = byte
            free += 1
    return table


try:
    if kind == "tiktoken":
        import tiktoken

        file = json.load(open(tokenizer, encoding="utf-8"))
        before, table = file["pre_tokenizer"], byte_of()
        gpt2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
        pattern = gpt2 if before["type"] == "ByteLevel" else before["pretokenizers"][0]["pattern"]["Regex"]
        added = {token["content"]: token["id"] for token in file["added_tokens"]}
        ranks = {
            bytes(table[c] for c in token): id
            for token, id in file["model"]["vocab"].items()
            if token not in added
        }
        encoding = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens=added)
        encode, name = encoding.encode_ordinary, f"tiktoken {tiktoken.__version__}"
    else:
        import tokenizers

        library = tokenizers.Tokenizer.from_file(tokenizer)
        library.encode_special_tokens = True
        encode = lambda text: library.encode(text, add_special_tokens=False).ids
        name = f"tokenizers {tokenizers.__version__}"
except (ImportError, KeyError, TypeError) as error:
    print(json.dumps({"missing": str(error)}), flush=True)
    sys.exit(0)

print(json.dumps({"name": name, "parameters": len(encode(text))}), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        encode(text)
    print(json.dumps({"seconds": time.perf_counter() - start, "loss": 0.0, "peak_mb": None}), flush=True)
