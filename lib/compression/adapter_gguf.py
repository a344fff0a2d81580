"""LoRA adapters as GGUF files, for llama.cpp to switch on and off over a GGUF base."""

from __future__ import annotations

import json
from pathlib import Path

from lib.compression.to_gguf import checked, permute, tensors, writing


def write(adapter: str | Path, base: str | Path, out: str | Path, dtype: str = "F16") -> Path:
    """Write a PEFT LoRA adapter as a GGUF adapter for the GGUF of `base` (a checkpoint folder).

    Raises ValueError for anything but plain LoRA on linear layers of a Llama.
    """
    import gguf

    adapter, out = Path(adapter), Path(out)
    config, _, _ = checked(base)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if (
        settings.get("peft_type") != "LORA"
        or settings.get("use_dora")
        or settings.get("modules_to_save")
    ):
        raise ValueError(
            f"{adapter}: only plain LoRA is converted (no DoRA, no fully trained modules)"
        )
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    scale = settings["r"] ** 0.5 if settings.get("use_rslora") else 1.0
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType[dtype]
    with writing(out) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"] * scale))
        for name, weight in tensors(adapter):
            module, part = (
                name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
            )
            target = names.get_name(module)
            if target is None:
                raise ValueError(f"{adapter}: module {module} has no place in a Llama GGUF")
            if part == "B" and module.endswith(("q_proj", "k_proj")):
                weight = permute(weight, heads if module.endswith("q_proj") else kv_heads)
            writer.add_tensor(
                f"{target}.weight.lora_{part.lower()}",
                gguf.quants.quantize(weight, kind),
                raw_dtype=kind,
            )
    return out
