"""tests/interop/spaces.py: vocabularies with byte_fallback as Hugging Face's tokenizers has them, for the scripts that judge them: trained here by tokenizers over texts of
many scripts, or by sentencepiece where there is one, and written as transformers writes those of Llama 2 and Mistral."""
import io
import json
import os

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import texts

MARK = "▁"
NAMES = ["<unk>", "<s>", "</s>"]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
PREPEND = {"type": "Prepend", "prepend": MARK}
DECODER = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def sequence(key, *items):
    return {"type": "Sequence", key: list(items)}


def added(id, content, **how):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} | how


def corpus(generator, size):
    """Text as people write it, and as they do not: the rarer half of its characters will be no token."""
    return [texts.plain(generator, 400) if generator.random() < 0.7 else texts.text(generator, 100) for _ in range(size)]


def trained(generator, size):
    """{token: id} and merges [[left, right]] of tokenizers' own trainer. Runs of spaces become tokens too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(" +[^ ]*|[^ ]+"), "isolated"),
                                                       pre_tokenizers.Metaspace(prepend_scheme="never", split=False)])
    trainer = trainers.BpeTrainer(vocab_size=size, limit_alphabet=300, show_progress=False)
    tokenizer.train_from_iterator(corpus(generator, 300), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = NAMES + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(model["vocab"], key=model["vocab"].get)
    return {token: id for id, token in enumerate(tokens)}, [list(merge) for merge in model["merges"]]


def sentencepiece_trained(generator, size, **more):
    """The same of sentencepiece's, and {token: score}; the merges are every pair that is a token, the highest score first, of equal ones the longer left part, as transformers
    converts them. None where there is no sentencepiece."""
    try:
        import sentencepiece
    except ImportError:
        return None
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(line for text in corpus(generator, 300) for line in text.replace("\0", "").split("\n")), model_writer=model,
                                             vocab_size=size, model_type="bpe", byte_fallback=True, character_coverage=0.995, normalization_rule_name="identity",
                                             remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1, **more)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens = [processor.id_to_piece(id) for id in range(processor.get_piece_size())]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    scores = {token: processor.get_score(id) for token, id in vocabulary.items()}
    merges = []
    for token, id in vocabulary.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in vocabulary and token[cut:] in vocabulary]
        merges += [(scores[token], left, right) for left, right in sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return vocabulary, [[left, right] for _, left, right in merges], scores, processor


def whole(vocabulary, merges, normalizer, pre_tokenizer, decoder, added_tokens, as_strings=False, **model):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": None, "decoder": decoder,
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                      "byte_fallback": True, "ignore_merges": False} | model |
                     {"vocab": vocabulary, "merges": [" ".join(merge) for merge in merges] if as_strings else merges}}


def legacy(vocabulary, merges, **more):
    """As Llama 2's."""
    named = [added(id, name) for id, name in enumerate(NAMES)]
    return whole(vocabulary, merges, sequence("normalizers", PREPEND, REPLACE), None, sequence("decoders", *DECODER, STRIP), named, as_strings=True, **more)


def write(tree, directory):
    with open(os.path.join(directory, "tokenizer.json"), "w") as file:
        json.dump(tree, file, ensure_ascii=False)
