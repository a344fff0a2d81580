"""GGUF weights back as a plain checkpoint: the compressed model as something that can be trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lib.compression.to_gguf import checked, unpermute


def reader(path: str | Path):
    """A GGUFReader. ValueError for a file that is not GGUF or is cut short."""
    import gguf

    path = Path(path)
    with open(path, "rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise ValueError(
            f"{path}: not a GGUF file (it begins with {magic!r}, not b'GGUF'); convert the checkpoint first"
        )
    try:
        found = gguf.GGUFReader(str(path))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: cut short or damaged ({error}); write it again") from error
    return found


def weights(path: str | Path):
    """(name, float32 array, type name) of every tensor of a GGUF file, dequantised as llama.cpp does."""
    import gguf

    for tensor in reader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        yield tensor.name, values.reshape(tuple(int(each) for each in reversed(tensor.shape))), tensor.tensor_type.name


def type_counts(path: str | Path) -> dict[str, int]:
    """{type: tensors} of a GGUF file, most frequent first."""
    from collections import Counter

    return dict(Counter(tensor.tensor_type.name for tensor in reader(path).tensors).most_common())


def zero_share(path: str | Path) -> dict[str, float]:
    """Share of exact zeros among the weights of attention and MLP matrices: {"all": share, type: share ...}."""
    import numpy as np

    zeros: dict[str, list[int]] = {"all": [0, 0]}
    for name, values, kind in weights(path):
        if values.ndim > 1 and name.startswith("blk."):
            none = int(values.size - np.count_nonzero(values))
            for entry in (zeros["all"], zeros.setdefault(kind, [0, 0])):
                entry[0] += none
                entry[1] += values.size
    return {kind: none / every for kind, (none, every) in zeros.items()}


def checkpoint(path: str | Path, like: str | Path, out: str | Path) -> Path:
    """Write the dequantised weights of a GGUF file as float32 checkpoint `out`, with config and tokenizer of `like`.

    like: the checkpoint folder that the file was made from. Raises ValueError when shapes do not match it.
    """
    import gguf
    import numpy as np

    config, _, _ = checked(like)
    out, heads = Path(out), config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    wanted = {"model.embed_tokens", "model.norm", "lm_head"} | {
        f"model.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in PARTS
    }
    back = {names.get_name(name): name for name in wanted}
    found = {}
    for name, values, _ in weights(path):
        if name == "rope_freqs.weight":
            continue
        target = back.get(name.removesuffix(".weight"))
        if target is None:
            raise ValueError(f"{path}: tensor {name} has no place in {Path(like).name}; it belongs to another model")
        if target.endswith("q_proj"):
            values = unpermute(values, heads)
        if target.endswith("k_proj"):
            values = unpermute(values, kv_heads)
        found[f"{target}.weight"] = np.ascontiguousarray(values, np.float32)
    table = found["model.embed_tokens.weight"].shape
    if table != (config["vocab_size"], config["hidden_size"]):
        raise ValueError(f"{path}: its table is {table}, that of {Path(like).name} {config['vocab_size']} rows of "
                         f"{config['hidden_size']}")  # fmt: skip
    return _save(found, config, like, out)


def dense(model, like: str | Path, out: str | Path) -> Path:
    """Write the dense weights of a transformers model that was loaded from quantised ones, as checkpoint `out`.

    like: the 16-bit checkpoint folder; tensors that it does not have (scales, zero points) stay behind.
    """
    from safetensors import safe_open

    config, _, _ = checked(like)
    names = set()
    for path in Path(like).glob("*.safetensors"):
        with safe_open(path, "pt") as handle:
            names |= set(handle.keys())
    state = model.state_dict()
    if missing := names - state.keys() - {"lm_head.weight"}:
        raise ValueError(f"the loaded model has no {sorted(missing)[0]}; its weights are still packed")
    found = {name: state[name].detach().float().cpu().numpy() for name in names if name in state}
    return _save(found, config, like, Path(out))


def _save(found: dict, config: dict, like: str | Path, out: Path) -> Path:
    from safetensors.numpy import save_file

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(found, partial / "model.safetensors", metadata={"format": "pt"})
    (partial / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=1), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (Path(like) / name).exists():
            shutil.copy(Path(like) / name, partial / name)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


PARTS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
