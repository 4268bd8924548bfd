"""tests/interop/llama.py: the tokenizer of llama.cpp, from the shared libraries that node-llama-cpp carries, by ctypes."""
import ctypes
import glob
import os

# struct llama_model_params of the version that scripts/setup-peers installs; `vocab_only` is what is set, the rest stays as it is by default.
class ModelParams(ctypes.Structure):
    _fields_ = [("devices", ctypes.c_void_p), ("tensor_buft_overrides", ctypes.c_void_p), ("n_gpu_layers", ctypes.c_int32),
                ("split_mode", ctypes.c_int32), ("load_mode", ctypes.c_int32), ("lazy_mode", ctypes.c_int32), ("main_gpu", ctypes.c_int32),
                ("tensor_split", ctypes.c_void_p), ("progress_callback", ctypes.c_void_p), ("progress_callback_user_data", ctypes.c_void_p),
                ("kv_overrides", ctypes.c_void_p), ("vocab_only", ctypes.c_bool), ("flags", ctypes.c_bool * 5), ("room", ctypes.c_char * 64)]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def library(peers):
    """libllama, or None."""
    found = glob.glob(os.path.join(peers, "node_modules", "@node-llama-cpp", "linux-x64", "bins", "linux-x64", "libllama.v*.so"))
    if not found:
        return None
    for name in ("libggml-base.so", "libggml.v*.so"):
        for path in glob.glob(os.path.join(os.path.dirname(found[0]), name)):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(found[0])
    llama.llama_model_default_params.restype = ModelParams
    llama.llama_model_load_from_file.restype = ctypes.c_void_p
    llama.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
    llama.llama_model_get_vocab.restype = ctypes.c_void_p
    llama.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    llama.llama_model_free.argtypes = [ctypes.c_void_p]
    llama.llama_tokenize.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]
    llama.quiet = LOG(lambda level, text, data: None)
    llama.llama_log_set(llama.quiet, None)
    llama.llama_backend_init()
    return llama


class Vocabulary:
    def __init__(self, llama, path):
        params = llama.llama_model_default_params()
        params.vocab_only = True
        self.llama = llama
        self.model = llama.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.vocab = llama.llama_model_get_vocab(self.model)

    def encode(self, data, special):
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self.llama.llama_tokenize(self.vocab, data, len(data), ids, room, False, special)
        return list(ids[:count])

    def close(self):
        self.llama.llama_model_free(self.model)
