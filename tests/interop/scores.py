#!/usr/bin/python3
"""tests/interop/scores.py PROGRAM: a SentencePiece vocabulary in a GGUF (written with gguf, PyPI), and the same ids from llama.cpp (node-llama-cpp): mixed
text, special tokens, runs, with and without a space before the text. Exit status 77: skipped."""
import os
import sys
import tempfile

import peers

with peers.needed():
    import gguf
    import numpy as np

    import llama
import texts

judge = texts.Judge(sys.argv[1])


def vocabulary(generator, ties):
    """Tokens, types, scores: bytes, the letters of a corpus, and pieces of its words, longer ones mostly made of shorter."""
    corpus = texts.plain(generator, 60000).replace(" ", "▁")
    pieces = sorted({character for character in corpus if character != "\n"})
    known = set(pieces)
    while len(pieces) < 3000:
        start, length = generator.randrange(len(corpus) - 9), generator.randrange(2, 9)
        piece = corpus[start:start + length]
        if piece not in known and "\n" not in piece and "▁" not in piece[1:]:
            known.add(piece)
            pieces.append(piece)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces + ["<mark>"]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [4]
    scores = [0.0] * 259 + [-float(i // (5 if ties else 1)) for i in range(len(pieces))] + [0.0]
    return tokens, types, scores


def write(path, settings, prefix):
    tokens, types, scores = settings
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(prefix)
    writer.add_tensor("nothing", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    library, generator = llama.needed_library(), texts.generator(6)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(4):
            path = os.path.join(directory, f"{number}.gguf")
            write(path, vocabulary(generator, number % 2), number < 2)
            model = llama.Model(library, path, vocabulary_only=True)
            strings = [texts.plain(generator, 20000), "", " ", "  ", "a", " a", "a" * 3000, " " * 300]
            strings += [texts.text(generator, generator.randrange(1, 60)) for _ in range(1500)]
            strings = [string.replace("\0", "") for string in strings + ["a▁b", "▁ ▁"]]
            for special in (0, 1):
                if special:
                    strings = ["".join(generator.choice(["<s>", "</s>", "<unk>", "<mark>", " ", "▁", "a b", texts.part(generator)]) for _ in range(6)) for _ in range(500)]
                    strings = [string.replace("\0", "") for string in strings]
                expected = [model.tokenize(string.encode(), bool(special)) for string in strings]
                judge.compare(path, f"scores, special {special}", [(special | 2 * (special or "▁" in string), string.encode()) for string in strings], expected)
            model.close()
    judge.finish()


main()
