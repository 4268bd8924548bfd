#!/usr/bin/python3
"""tests/interop/scores_written.py PROGRAM: vocabularies with merges as GGUF's scores, in which llama.cpp (node-llama-cpp) must find the ids of tokenizers (PyPI); and back, a
tokenizer.json of scores, in which tokenizers must find llama.cpp's. Where the two definitions differ, how often. Exit status 77: skipped."""
import json
import os
import subprocess
import sys
import tempfile

import peers

with peers.needed():
    from tokenizers import Tokenizer

    import llama
    import spaces
    import tiny
import texts

MICA = os.path.abspath(sys.argv[1])
judge = texts.Judge(sys.argv[1])
WRITER = os.path.join(os.path.dirname(MICA), "tests", "write_vocabulary")


def run(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True)
    judge.check(done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def strings(generator, count):
    made = [texts.plain(generator, 200000), "", " ", "   ", "a" * 3000, "ab" * 3000, " " * 300, "aaa bb  ▁▁c" * 50]
    made += [texts.text(generator, generator.randrange(1, 60)) for _ in range(count)]
    made += ["".join(generator.choice(["<s>", "</s>", "<unk>", " ", "a b", texts.part(generator)]) for _ in range(6)) for _ in range(count)]
    made += ["".join(generator.choice("abc \n") for _ in range(generator.randrange(1, 40))) for _ in range(count)]
    return [text.replace("\0", "") for text in made]


def one(library, tree, what, generator, exact=True):
    """The ids of a vocabulary's merges in tokenizers, of its scores in llama.cpp, and of Mica's reading of the scores."""
    with tempfile.TemporaryDirectory() as scratch:
        spaces.write(tree, scratch)
        file = os.path.join(scratch, "scores.gguf")
        run(WRITER, scratch, file)
        model, merges = llama.Model(library, file, vocabulary_only=True), Tokenizer.from_str(json.dumps(tree))
        made = strings(generator, 1500)
        by_merges = [encoding.ids for encoding in merges.encode_batch(made, add_special_tokens=False)]
        by_scores = [model.tokenize(text.encode(), True) for text in made]
        model.close()
        judge.compare(file, f"{what}: scores", [(3, text.encode()) for text in made], by_scores)
        other = [text for text, a, b in zip(made, by_merges, by_scores) if a != b]
        print(f"{what}: {len(tree['model']['vocab'])} tokens: llama.cpp by scores has other ids than tokenizers by merges in {len(other)} of {len(made)} texts", flush=True)
        judge.check(exact == (not other), f"{what}: {len(other)} texts have other ids by scores")


def through_export(library, tree, what, generator):
    """tiny-k2 with this vocabulary to GGUF, in which llama.cpp must find tokenizers' ids, and to safetensors again, whose
    tokenizer.json must give them."""
    with tempfile.TemporaryDirectory() as scratch:
        source, file, back = (os.path.join(scratch, name) for name in ("source", "model.gguf", "back"))
        count = max(*tree["model"]["vocab"].values(), *(token["id"] for token in tree["added_tokens"])) + 1
        tiny.with_vocabulary(source, vocab_size=count, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        spaces.write(tree, source)
        json.dump({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}, open(os.path.join(source, "tokenizer_config.json"), "w"))
        run(MICA, "export", source, "--format", "gguf", "-o", file)
        run(MICA, "export", file, "--format", "safetensors", "-o", back)
        model, first, again = llama.Model(library, file, vocabulary_only=True), Tokenizer.from_str(json.dumps(tree)), Tokenizer.from_file(os.path.join(back, "tokenizer.json"))
        made = strings(generator, 700)
        ids = [encoding.ids for encoding in first.encode_batch(made, add_special_tokens=False)]
        judge.check([model.tokenize(text.encode(), True) for text in made] == ids, f"{what}: llama.cpp has other ids")
        judge.check([encoding.ids for encoding in again.encode_batch(made, add_special_tokens=False)] == ids, f"{what}: the tokenizer.json that came back has other ids")
        judge.check(again.decode_batch(ids, skip_special_tokens=False) == first.decode_batch(ids, skip_special_tokens=False), f"{what}: what came back decodes otherwise")
        judge.check([encoding.ids for encoding in again.encode_batch(made)] == [[1] + row for row in ids], f"{what}: what came back begins no text with <s>")
        judge.check(model.tokens == count and again.get_vocab_size() == first.get_vocab_size(), f"{what}: {model.tokens} tokens, {again.get_vocab_size()} came back")
        for name in (file, back):
            judge.compare(name, what, [(3, text.encode()) for text in made], ids)
        model.close()
        print(f"{what}: through mica export and back: {len(made)} texts", flush=True)


def main():
    library, generator = llama.needed_library(), texts.generator(11)
    for number in range(2):
        converted = spaces.sentencepiece_trained(generator, 3000 + 1000 * number, split_digits=bool(number), split_by_whitespace=not number)
        if converted:
            one(library, spaces.legacy(*converted[:2]), f"sentencepiece's, {['words', 'across words'][number]}", generator)
    if converted:
        through_export(library, spaces.legacy(*converted[:2]), "sentencepiece's", generator)
    else:
        print("without vocabularies of sentencepiece's, which is not there")
    vocabulary, merges = spaces.trained(generator, 6000)
    tree = spaces.legacy(vocabulary, merges)
    one(library, tree, "tokenizers' own", generator)
    tree["added_tokens"] += [spaces.added(max(vocabulary.values()) + 1 + i, text, special=special) for i, (text, special) in enumerate([("<|end|>", True), ("<mark>", False)])]
    through_export(library, tree, "tokenizers' own", generator)
    # tokens that no merge makes: scores do
    one(library, spaces.legacy(vocabulary, [merge for merge in merges if generator.random() < 0.97]), "tokenizers' own without some merges", generator, False)
    judge.finish()


main()
