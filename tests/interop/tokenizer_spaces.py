#!/usr/bin/python3
"""tests/interop/tokenizer_spaces.py PROGRAM: tokenizer.json with byte_fallback in every way that is read: normalizers and Metaspace, added tokens of each kind, vocabularies trained
here by tokenizers (PyPI) and by sentencepiece where it is; the same ids from tokenizers, and the same text back. Exit status 77: skipped."""
import json
import sys
import tempfile

import peers

with peers.needed():
    from tokenizers import Tokenizer

    import spaces
import texts

judge = texts.Judge(sys.argv[1])


def metaspace(scheme, split, **more):
    return {"type": "Metaspace", "replacement": spaces.MARK, "prepend_scheme": scheme, "split": split} | more


# normalizer, pre_tokenizer, decoder's end, what the model says otherwise
LEGACY = spaces.sequence("normalizers", spaces.PREPEND, spaces.REPLACE)
KINDS = {
    "Llama 2": (LEGACY, None, [spaces.STRIP], {}),
    "no prefix": (spaces.REPLACE, None, [], {"fuse_unk": False}),
    "first": (None, metaspace("first", False), [spaces.STRIP], {}),
    "always": (None, metaspace("always", False), [spaces.STRIP], {"unk_token": None}),
    "never": (None, metaspace("never", False), [], {"ignore_merges": True}),
    "first, words": (None, metaspace("first", True), [spaces.STRIP], {}),
    "always, words": (None, metaspace("always", True), [spaces.STRIP], {"ignore_merges": True}),
    "never, words": (None, {"type": "Metaspace", "replacement": spaces.MARK, "add_prefix_space": True}, [], {"ignore_merges": True}),
    "both": (spaces.sequence("normalizers", spaces.REPLACE, spaces.PREPEND), metaspace("always", True), [spaces.STRIP], {}),
}
NEVER = ["<unk>", "<s>", "</s>", "<pad>", "<raw>", " <two>", "<left>", "<right>", "<both>", "<norm>", "<norm>x", "norm", "<0x0A>", "\t", "▁<mark>"]


def added_tokens(vocabulary):
    """Special ones, others, those that take white space, those that are looked for in normalized text."""
    first = max(vocabulary.values()) + 1
    rows = [("<pad>", {"normalized": True}), ("<raw>", {"special": False}), (" <two>", {"special": False}), ("<left>", {"lstrip": True}),
            ("<right>", {"rstrip": True, "special": False}), ("<both>", {"lstrip": True, "rstrip": True}), ("<norm>", {"normalized": True, "special": False}),
            ("<norm>x", {"normalized": True}), ("norm", {"special": False, "normalized": True})]
    rows.append(("▁<mark>", {"normalized": True, "special": False, "lstrip": True}))
    tokens = [spaces.added(id, name) for id, name in enumerate(spaces.NAMES)]
    if "\t" in vocabulary: # in the vocabulary too
        tokens.append(spaces.added(vocabulary["\t"], "\t", normalized=True))
    return tokens + [spaces.added(first + i, text, **how) for i, (text, how) in enumerate(rows)]


def strings(generator, count):
    made = [texts.text(generator, 30000), texts.plain(generator, 30000), "", " ", "  ", "a", " a", "   a  b ", spaces.MARK, "a▁b", "▁▁ a", " " * 300, "ab" * 3000, "aaa" * 999]
    made += [texts.text(generator, generator.randrange(1, 60)) for _ in range(count)]
    made += [texts.plain(generator, generator.randrange(1, 60)) for _ in range(count)]
    made += ["".join(generator.choice(" \n▁abx") for _ in range(generator.randrange(1, 20))) for _ in range(count)]
    made += ["".join(generator.choice([generator.choice(NEVER), generator.choice(NEVER), " ", "  ", "\u3000", "\x85\t", texts.part(generator)]) for _ in range(6)) for _ in range(count)]
    return made


def compare(what, tree, generator, count):
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    with tempfile.TemporaryDirectory() as directory:
        spaces.write(tree, directory)
        for special in (1, 0):
            tokenizer.encode_special_tokens = not special
            texts_here = strings(generator, count)
            ids = [encoding.ids for encoding in tokenizer.encode_batch(texts_here, add_special_tokens=False)]
            # of an added token that is written with U+2581, decoding gives that
            decoded = [None if "▁<mark>" in text else back.encode() for text, back in zip(texts_here, tokenizer.decode_batch(ids, skip_special_tokens=False))]
            judge.compare(directory, f"{what}, special {special}", [(special | 2, text.encode()) for text in texts_here], ids, decoded)
        if tree["normalizer"] == LEGACY: # what is no UTF-8 comes back, and nothing else is lost
            data = [bytes(generator.randrange(256) for _ in range(generator.randrange(40))) for _ in range(count)]
            data += [generator.choice(texts_here).encode()[generator.randrange(3):] + b"\xe2\x96 \xff" for _ in range(count)]
            judge.encode(directory, [(0, text) for text in data if not any(token["content"].encode() in text for token in tree["added_tokens"]) and b"\xe2\x96\x81" not in text])


def main():
    generator = texts.generator(9)
    vocabulary, merges = spaces.trained(generator, 3000)
    for number, (kind, (normalizer, pre_tokenizer, end, model)) in enumerate(KINDS.items()):
        tree = spaces.whole(vocabulary, merges, normalizer, pre_tokenizer, spaces.sequence("decoders", *spaces.DECODER, *end),
                            added_tokens(vocabulary), number % 2, **model)
        compare(kind, tree, generator, 400)
    converted = spaces.sentencepiece_trained(generator, 3000)
    if converted:
        compare("sentencepiece's", spaces.legacy(*converted[:2]), generator, 400)
    else:
        print("without a vocabulary of sentencepiece's, which is not there")
    judge.finish()


main()
