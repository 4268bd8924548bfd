"""tests/interop/make_gguf.py: a checkpoint of the deepseek_v3 family as a GGUF file, by numpy and gguf (PyPI) alone, for scripts that need a
file that mica did not write. convert(checkpoint, path, kind="F32", legacy=False) returns {GGUF name: float32 array}, the values written.
Reads F32, BF16 and block-scaled fp8; kind is one that gguf can quantise to."""
import glob
import json
import os
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type, quants


def e4m3_table():
    table = np.zeros(256)
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        value = mantissa * 2.0 ** -9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        table[code] = np.nan if code & 127 == 127 else -value if code & 128 else value
    return table.astype(np.float32)


class Checkpoint:
    def __init__(self, directory):
        with open(os.path.join(directory, "config.json")) as file:
            self.outer = json.load(file)
        self.config = dict(self.outer, **self.outer.get("text_config", {}))
        self.prefix = "language_model." if "text_config" in self.outer else ""
        self.entries = {}
        for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
            with open(path, "rb") as file:
                length, = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    self.entries[name] = (path, 8 + length + entry["data_offsets"][0], entry["dtype"], entry["shape"])
        self.table = e4m3_table()

    def raw(self, name):
        path, offset, dtype, shape = self.entries[name]
        kind = {"F32": "<f4", "BF16": "<u2", "F16": "<f2", "F8_E4M3": "u1"}[dtype]
        values = np.fromfile(path, dtype=kind, count=int(np.prod(shape)), offset=offset).reshape(shape)
        return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values

    def has(self, name):
        return self.prefix + name in self.entries

    def get(self, name):
        name = self.prefix + name
        values = self.raw(name)
        if self.entries[name][2] != "F8_E4M3":
            return values.astype(np.float32)
        rows, columns = self.config["quantization_config"]["weight_block_size"]
        scales = self.raw(name + "_scale_inv")
        grid = np.repeat(np.repeat(scales, rows, axis=0), columns, axis=1)[:values.shape[0], :values.shape[1]]
        return (self.table[values].astype(np.float64) * grid).astype(np.float32)


def add_metadata(writer, config, legacy):
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    rank, heads = config["kv_lora_rank"], config["num_attention_heads"]
    u32 = {"block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
           "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
           "attention.head_count": heads, "attention.head_count_kv": heads if legacy else 1,
           "leading_dense_block_count": config["first_k_dense_replace"], "vocab_size": config["vocab_size"],
           "attention.kv_lora_rank": rank, "attention.key_length": nope + rope if legacy else rank + rope,
           "attention.value_length": value if legacy else rank, "expert_feed_forward_length": config["moe_intermediate_size"],
           "expert_count": config["n_routed_experts"], "expert_used_count": config["num_experts_per_tok"],
           "expert_shared_count": config.get("n_shared_experts") or 0, "rope.dimension_count": rope,
           "expert_gating_func": {"softmax": 1, "sigmoid": 2}[config.get("scoring_func", "sigmoid")],
           "attention.q_lora_rank": config.get("q_lora_rank") or 0,
           "expert_group_count": config.get("n_group") or 1, "expert_group_used_count": config.get("topk_group") or 1}
    if not legacy:
        u32.update({"attention.key_length_mla": nope + rope, "attention.value_length_mla": value})
    for key, number in u32.items():
        writer.add_uint32("deepseek2." + key, number)
    f32 = {"attention.layer_norm_rms_epsilon": config.get("rms_norm_eps", 1e-6), "rope.freq_base": config.get("rope_theta", 10000.0),
           "expert_weights_scale": config.get("routed_scaling_factor", 1.0)}
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type", scaling.get("rope_type")) == "yarn":
        writer.add_string("deepseek2.rope.scaling.type", "yarn")
        writer.add_uint32("deepseek2.rope.scaling.original_context_length", scaling["original_max_position_embeddings"])
        f32.update({"rope.scaling.factor": scaling["factor"], "rope.scaling.yarn_beta_fast": scaling.get("beta_fast", 32),
                    "rope.scaling.yarn_beta_slow": scaling.get("beta_slow", 1),
                    "rope.scaling.yarn_log_multiplier": 0.1 * scaling.get("mscale_all_dim", 0)})
    for key, number in f32.items():
        writer.add_float32("deepseek2." + key, number)
    writer.add_bool("deepseek2.expert_weights_norm", bool(config.get("norm_topk_prob", True)))


def layer_tensors(checkpoint, layer, legacy):
    config, source = checkpoint.config, f"model.layers.{layer}."
    attention = {"q_proj": "attn_q", "q_a_proj": "attn_q_a", "q_a_layernorm": "attn_q_a_norm", "q_b_proj": "attn_q_b",
                 "kv_a_proj_with_mqa": "attn_kv_a_mqa", "kv_a_layernorm": "attn_kv_a_norm", "o_proj": "attn_output"}
    yield "attn_norm.weight", checkpoint.get(source + "input_layernorm.weight")
    yield "ffn_norm.weight", checkpoint.get(source + "post_attention_layernorm.weight")
    for name, target in attention.items():
        if checkpoint.has(source + f"self_attn.{name}.weight"):
            yield target + ".weight", checkpoint.get(source + f"self_attn.{name}.weight")
    kv_b = checkpoint.get(source + "self_attn.kv_b_proj.weight")
    if legacy:
        yield "attn_kv_b.weight", kv_b
    else:
        heads = kv_b.reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
        nope = config["qk_nope_head_dim"]
        yield "attn_k_b.weight", np.ascontiguousarray(heads[:, :nope].transpose(0, 2, 1))
        yield "attn_v_b.weight", np.ascontiguousarray(heads[:, nope:])
    for projection in ("gate", "up", "down"):
        if layer < config["first_k_dense_replace"]:
            yield f"ffn_{projection}.weight", checkpoint.get(source + f"mlp.{projection}_proj.weight")
            continue
        yield f"ffn_{projection}_exps.weight", np.stack([checkpoint.get(source + f"mlp.experts.{expert}.{projection}_proj.weight")
                                                         for expert in range(config["n_routed_experts"])])
        if config.get("n_shared_experts"):
            yield f"ffn_{projection}_shexp.weight", checkpoint.get(source + f"mlp.shared_experts.{projection}_proj.weight")
    if layer >= config["first_k_dense_replace"]:
        yield "ffn_gate_inp.weight", checkpoint.get(source + "mlp.gate.weight")
        if checkpoint.has(source + "mlp.gate.e_score_correction_bias"):
            yield "exp_probs_b.bias", checkpoint.get(source + "mlp.gate.e_score_correction_bias")


def model_tensors(checkpoint, legacy):
    yield "token_embd.weight", checkpoint.get("model.embed_tokens.weight")
    yield "output_norm.weight", checkpoint.get("model.norm.weight")
    if not checkpoint.config.get("tie_word_embeddings") and checkpoint.has("lm_head.weight"):
        yield "output.weight", checkpoint.get("lm_head.weight")
    for layer in range(checkpoint.config["num_hidden_layers"]):
        for name, values in layer_tensors(checkpoint, layer, legacy):
            yield f"blk.{layer}.{name}", values


def convert(directory, path, kind="F32", legacy=False):
    checkpoint = Checkpoint(directory)
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_type("model")
    add_metadata(writer, checkpoint.config, legacy)
    written = {}
    for name, values in model_tensors(checkpoint, legacy):
        block = gguf.GGML_QUANT_SIZES[Type[kind]][0]
        plain = values.ndim < 2 or not name.endswith("weight") or "ffn_gate_inp" in name or values.shape[-1] % block
        if plain or kind == "F32":
            writer.add_tensor(name, values)
            written[name] = values
        else:
            data = quants.quantize(values, Type[kind])
            writer.add_tensor(name, data, raw_dtype=Type[kind])
            written[name] = quants.dequantize(data, Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def interleave(values, heads):
    """llama.cpp's order of llama's query and key rows: halves of each head become pairs."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def llama3_factors(config):
    """What llama.cpp's rope_freqs.weight holds: the divisor of each frequency under llama3's scaling."""
    scaling = config["rope_scaling"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(0, width, 2) / width)
    low, high = (scaling["original_max_position_embeddings"] / scaling[key] for key in ("low_freq_factor", "high_freq_factor"))
    smooth = (scaling["original_max_position_embeddings"] / wavelengths - scaling["low_freq_factor"]) / (
        scaling["high_freq_factor"] - scaling["low_freq_factor"])
    between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return np.where(wavelengths < high, 1, np.where(wavelengths > low, scaling["factor"], between)).astype(np.float32)


def dense_tensors(checkpoint):
    config = checkpoint.config
    if config.get("rope_scaling"):
        yield "rope_freqs.weight", llama3_factors(config)
    permute = config["model_type"] == "llama"
    yield "token_embd.weight", checkpoint.get("model.embed_tokens.weight")
    yield "output_norm.weight", checkpoint.get("model.norm.weight")
    if not config.get("tie_word_embeddings"):
        yield "output.weight", checkpoint.get("lm_head.weight")
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for layer in range(config["num_hidden_layers"]):
        for source, target in names.items():
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.{source}.{kind}"
                if not checkpoint.has(name):
                    continue
                values = checkpoint.get(name)
                if permute and target in ("attn_q", "attn_k"):
                    values = interleave(values, config["num_attention_heads" if target == "attn_q" else "num_key_value_heads"])
                yield f"blk.{layer}.{target}.{kind}", values


def convert_dense(directory, path):
    """A llama or qwen3 checkpoint, in F32."""
    checkpoint = Checkpoint(directory)
    config = checkpoint.config
    name = config["model_type"]
    writer = gguf.GGUFWriter(path, name)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for key, number in {"block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
                        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
                        "attention.head_count": config["num_attention_heads"], "attention.head_count_kv": config["num_key_value_heads"],
                        "attention.key_length": width, "attention.value_length": width, "rope.dimension_count": width,
                        "vocab_size": config["vocab_size"]}.items():
        writer.add_uint32(f"{name}.{key}", number)
    writer.add_float32(f"{name}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32(f"{name}.rope.freq_base", config["rope_theta"])
    written = dict(dense_tensors(checkpoint))
    for tensor, values in written.items():
        writer.add_tensor(tensor, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written
