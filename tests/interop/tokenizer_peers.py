"""tests/interop/tokenizer_peers.py: Kimi's tokenizer as tiktoken has it."""
import base64
import json
import os

import tiktoken

# As Kimi's own tokenizer has it.
KIMI_PATTERN = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def tiktoken_of(directory):
    ranks = {}
    for line in open(os.path.join(directory, "tiktoken.model"), "rb"):
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    added = json.load(open(os.path.join(directory, "tokenizer_config.json")))["added_tokens_decoder"]
    names = {int(id): token["content"] for id, token in added.items()}
    special = {names.get(id, f"<|reserved_token_{id}|>"): id for id in range(len(ranks), len(ranks) + 256)}
    return tiktoken.Encoding("kimi", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens=special)
