#!/usr/bin/python3
"""tests/interop/tokenizer_json.py PROGRAM: tokenizer.json of each kind that is read, made here with tokenizers (PyPI), and the same ids from both: random
texts, special and added tokens, merges as pairs and as strings. Exit status 77: skipped."""
import json
import os
import sys
import tempfile
import unicodedata

import peers

with peers.needed():
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import texts

judge = texts.Judge(sys.argv[1])
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
               "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
LETTERS = ("µÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ"
           "ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")
DEEPSEEK_LLM = ["[\r\n]", r"\s?[A-Za-z" + LETTERS + "]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+"]


def splits(patterns, *more):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns] + list(more) +
                                   [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


KINDS = {
    "gpt2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None, False),
    "llama3": (splits([LLAMA3]), None, True),
    "qwen2": (splits([QWEN2]), normalizers.NFC(), False),
    "deepseek-v3": (splits(DEEPSEEK_V3), None, False),
    "deepseek-llm": (splits(DEEPSEEK_LLM, pre_tokenizers.Digits(individual_digits=True)), normalizers.Sequence([]), False),
    "digits": (splits([], pre_tokenizers.Digits(individual_digits=False)), None, False),
}


def train(pre_tokenizer, normalizer, ignore_merges, corpus):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
                                  special_tokens=["<|begin|>", "<|end|>", "<|end|>|"])
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken("<｜User｜>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("  \n", normalized=False)])
    return tokenizer


def write(tokenizer, directory, as_strings):
    whole = json.loads(tokenizer.to_str())
    if as_strings:
        whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    with open(os.path.join(directory, "tokenizer.json"), "w") as file:
        json.dump(whole, file, ensure_ascii=as_strings, indent=None if as_strings else 1)


def misordered():
    """Combining characters that the peer's tables of Unicode, which are older, do not know as such: its NFC leaves them where they stand."""
    nfc = normalizers.NFC()
    return {character for group in texts.GROUPS.values() for character in group if unicodedata.combining(character) and
            any(nfc.normalize_str(text) != unicodedata.normalize("NFC", text) for text in ("\u0301" + character, character + "\u0334"))}


def compare(kind, tokenizer, directory, generator):
    strings = [texts.text(generator, 200000)] + [run[:20000] for run in texts.long_runs()]
    strings += [texts.text(generator, generator.randrange(1, 60)) for _ in range(1500)]
    strings += ["".join(texts.character(generator) for _ in range(generator.randrange(1, 30))) for _ in range(1500)]
    names = ["<|begin|>", "<|end|>", "<|end|>|", "<｜User｜>", "<think>", "  \n", "<|end", "think>"]
    strings += ["".join(generator.choice([generator.choice(names), texts.part(generator)]) for _ in range(8)) for _ in range(500)]
    composed = 2 if kind == "qwen2" else 0
    if composed:
        unknown = misordered()
        print(f"{kind}: without {len(unknown)} combining characters that the peer's tables do not have")
        strings = ["".join(character for character in string if character not in unknown) for string in strings]
    for special in (1, 0):
        tokenizer.encode_special_tokens = not special
        expected = [encoding.ids for encoding in tokenizer.encode_batch(strings, add_special_tokens=False)]
        judge.compare(directory, f"{kind}, special {special}", [(special | composed, string.encode()) for string in strings], expected)


def main():
    generator = texts.generator(3)
    corpus = [texts.text(generator, 2000) for _ in range(150)]
    for number, (kind, settings) in enumerate(KINDS.items()):
        tokenizer = train(*settings, corpus)
        with tempfile.TemporaryDirectory() as directory:
            write(tokenizer, directory, number % 2)
            compare(kind, tokenizer, directory, generator)
    judge.finish()


main()
