"""tests/interop/llama.py: as much of llama.cpp's library (npm node-llama-cpp, under build/peers) as the tests of this directory need, through
ctypes. Structures that are passed by value are opaque and larger than the library's; the few fields set here are at the offsets of v0.5.0."""
import ctypes
import glob
import os
import re

import numpy as np

import peers

BLOB = 512


class Blob(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * BLOB), ("align", ctypes.c_uint64)]

    def put(self, kind, offset, value):
        kind.from_buffer(self, offset).value = value

    def get(self, kind, offset):
        return kind.from_buffer(self, offset).value


class Batch(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
                ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
                ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8))]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
EVALUATED = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
messages = []


@LOG
def keep_message(level, text, _):
    if level >= 3:  # warnings and errors
        messages.append(text.decode(errors="replace"))


def open_library():
    """The library, or None where the package is not there."""
    directories = glob.glob(os.path.join(peers.PEERS, "node_modules/@node-llama-cpp/linux-*/bins/linux-*"))
    directories = [d for d in directories if glob.glob(os.path.join(d, "libllama.*so*"))]
    machine = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}.get(os.uname().machine, "")
    directories = [d for d in directories if os.path.basename(d) == machine]
    if not directories:
        return None
    at = directories[0]
    ggml_base = ctypes.CDLL(os.path.join(at, "libggml-base.so"), ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(glob.glob(os.path.join(at, "libggml.*so*"))[0], ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(glob.glob(os.path.join(at, "libllama.*so*"))[0], ctypes.RTLD_GLOBAL)
    ggml_base.ggml_log_set(keep_message, None)
    ggml.ggml_backend_load_all_from_path(at.encode())
    library.llama_log_set(keep_message, None)
    ggml_base.ggml_get_name.restype, ggml_base.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    ggml_base.ggml_nelements.restype, ggml_base.ggml_nelements.argtypes = ctypes.c_int64, [ctypes.c_void_p]
    for function in (ggml_base.ggml_backend_tensor_get, ggml_base.ggml_backend_tensor_set):
        function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    library.tensors = ggml_base
    for name in ("llama_model_default_params", "llama_context_default_params", "llama_model_quantize_default_params"):
        getattr(library, name).restype = Blob
    for name, result, arguments in (
            ("llama_model_load_from_file", ctypes.c_void_p, [ctypes.c_char_p, Blob]),
            ("llama_model_free", None, [ctypes.c_void_p]), ("llama_free", None, [ctypes.c_void_p]),
            ("llama_init_from_model", ctypes.c_void_p, [ctypes.c_void_p, Blob]),
            ("llama_model_get_vocab", ctypes.c_void_p, [ctypes.c_void_p]),
            ("llama_vocab_n_tokens", ctypes.c_int32, [ctypes.c_void_p]),
            ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p]),
            ("llama_decode", ctypes.c_int32, [ctypes.c_void_p, Batch]),
            ("llama_tokenize", ctypes.c_int32, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32),
                                                ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]),
            ("llama_detokenize", ctypes.c_int32, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_char_p,
                                                  ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]),
            ("llama_model_quantize", ctypes.c_uint32, [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Blob)])):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def needed_library():
    """The library; where it is not there the script is skipped."""
    library = open_library()
    if library is None:
        peers.skip("no llama.cpp")
    return library


class Model:
    """A GGUF file as llama.cpp loads it: float32 cache, no flash attention."""

    def __init__(self, library, path, vocabulary_only=False):
        self.library, self.context = library, None
        messages.clear()
        parameters = library.llama_model_default_params()
        if vocabulary_only:
            parameters.put(ctypes.c_bool, 72, True)
        self.model = library.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise ValueError("llama.cpp does not load " + path + ": " + "".join(messages)[-600:])
        self.vocabulary = library.llama_model_get_vocab(self.model)
        self.tokens = library.llama_vocab_n_tokens(self.vocabulary)

    def close(self):
        if self.context:
            self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)

    def logits(self, ids, beta_fast=None, choices=None, given=None):
        """[len(ids)][tokens], of the ids as one sequence from its start. `choices` (a dictionary) gets, by layer with experts, all experts
        of each token from the best to the worst, and what they are chosen by: "argsort" and "scores", both [len(ids)][experts]. `given`, by
        layer [len(ids)][chosen], are experts to be used instead of the best."""
        parameters = self.library.llama_context_default_params()
        for index, value in enumerate((len(ids) + 8, len(ids) + 8, len(ids) + 8)):
            parameters.put(ctypes.c_uint32, 4 * index, value)
        parameters.put(ctypes.c_int32, 28, 2)
        parameters.put(ctypes.c_int32, 32, 2)
        parameters.put(ctypes.c_int32, 52, 0)  # no flash attention
        if beta_fast is not None:
            parameters.put(ctypes.c_float, 72, beta_fast)
        watch = self.watch(len(ids), choices, given)
        if choices is not None:
            parameters.put(ctypes.c_void_p, 88, ctypes.cast(watch, ctypes.c_void_p).value)
        parameters.put(ctypes.c_int32, 104, 0)  # float32 keys and values
        parameters.put(ctypes.c_int32, 108, 0)
        if self.context:
            self.library.llama_free(self.context)
        self.context = self.library.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise ValueError("llama.cpp makes no context: " + "".join(messages)[-600:])
        count = len(ids)
        sequence = ctypes.c_int32(0)
        batch = Batch(count, (ctypes.c_int32 * count)(*ids), None, (ctypes.c_int32 * count)(*range(count)),
                      (ctypes.c_int32 * count)(*[1] * count),
                      (ctypes.POINTER(ctypes.c_int32) * count)(*[ctypes.pointer(sequence)] * count), (ctypes.c_int8 * count)(*[1] * count))
        if self.library.llama_decode(self.context, batch):
            raise ValueError("llama_decode failed")
        values = np.ctypeslib.as_array(self.library.llama_get_logits(self.context), shape=(count, self.tokens))
        return values.astype(np.float64)

    def watch(self, tokens, choices, given):
        """What llama.cpp asks of each tensor (is it wanted?), and calls when a wanted one is there."""
        base = self.library.tensors

        @EVALUATED
        def evaluated(tensor, ask, _):
            name = re.fullmatch(r"ffn_moe_(probs|probs_biased|argsort)-(\d+)", base.ggml_get_name(tensor).decode())
            if name and not ask:
                what, layer = ("argsort" if name[1] == "argsort" else "scores"), int(name[2])
                values = np.empty((tokens, base.ggml_nelements(tensor) // tokens), dtype="<i4" if what == "argsort" else "<f4")
                base.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
                choices.setdefault(layer, {})[what] = values  # with a correction the scores that have it come last
                if given and what == "argsort":
                    values = values.copy()
                    values[:, :given[layer].shape[1]] = given[layer]
                    base.ggml_backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)
            return bool(name) or not ask

        return evaluated

    def greedy(self, ids, count):
        ids = list(ids)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids

    def tokenize(self, text, special=False):
        room = len(text) + 16
        ids = (ctypes.c_int32 * room)()
        count = self.library.llama_tokenize(self.vocabulary, text, len(text), ids, room, False, special)
        return list(ids[:count])

    def text(self, ids):
        buffer = ctypes.create_string_buffer(64 * len(ids) + 64)
        length = self.library.llama_detokenize(self.vocabulary, (ctypes.c_int32 * len(ids))(*ids), len(ids), buffer, len(buffer), False, True)
        return buffer.raw[:length].decode(errors="replace")


class Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


def quantise(library, source, target, file_type, importance=()):
    """llama-quantize; its messages. `importance`: (tensor's name, float32 weights of its columns, matrix after matrix)."""
    parameters = library.llama_model_quantize_default_params()
    parameters.put(ctypes.c_int32, 0, 2)
    parameters.put(ctypes.c_int32, 4, file_type)
    parameters.put(ctypes.c_bool, 16, True)  # allow_requantize
    table = (Importance * (len(importance) + 1))(
        *[Importance(name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size) for name, values in importance])
    if importance:
        parameters.put(ctypes.c_void_p, 24, ctypes.addressof(table))
    messages.clear()
    return library.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
