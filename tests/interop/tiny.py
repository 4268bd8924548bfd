"""tests/interop/tiny.py: models/tiny-k2 with another vocabulary, for scripts that export one."""
import json
import os
import shutil

from safetensors import deserialize

from peers import ROOT

TINY = os.path.join(ROOT, "models", "tiny-k2")


def with_vocabulary(directory, **config):
    """The model without its tokenizer's files in a new directory: embedding and head of vocab_size rows, zeros; keys of config.json."""
    os.mkdir(directory)
    whole = json.load(open(os.path.join(TINY, "config.json"))) | config
    json.dump(whole, open(os.path.join(directory, "config.json"), "w"))
    for file in (f for f in os.listdir(TINY) if f.endswith(".safetensors")):
        tensors = dict(deserialize(open(os.path.join(TINY, file), "rb").read()))
        header, data = {}, bytearray()
        for name, tensor in tensors.items():
            body, shape = bytes(tensor["data"]), list(tensor["shape"])
            if name in ("model.embed_tokens.weight", "lm_head.weight"):
                shape[0] = whole["vocab_size"]
                body = bytes(2 * shape[0] * shape[1])
            header[name] = {"dtype": tensor["dtype"], "shape": shape, "data_offsets": [len(data), len(data) + len(body)]}
            data += body
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        open(os.path.join(directory, file), "wb").write(len(text).to_bytes(8, "little") + text + data)
    shutil.copy(os.path.join(TINY, "model.safetensors.index.json"), directory)
