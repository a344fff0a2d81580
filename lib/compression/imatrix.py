"""The importance matrix of llama.cpp: for each input channel of a linear layer the mean square of
what arrives there."""

from __future__ import annotations


def measure(model_name: str, rows: list[list[int]], wanted: int, revision: str = "") -> dict:
    """{GGUF tensor name: float32 array [input channels]} over calibration token ids, by forward
    hooks.

    The output table's entry stands under token_embd.weight when the tables are tied, else under
    output.weight. Quantising with it minimises errors weighed by it. Source: llama.cpp, pull
    request 4861.
    Args: rows: token ids, one list a calibration text; wanted: how many were asked for.
    Raises ValueError when there are fewer than asked.
    """
    import gguf
    import torch

    from lib import models

    if len(rows) < wanted:
        raise ValueError(
            f"{len(rows)} calibration texts, {wanted} were asked for; lower the number or curate"
            " more rows (00_curate)"
        )
    loaded, _ = models.load(model_name, "float32", revision)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, loaded.config.num_hidden_layers)
    sums, counts, hooks = {}, {}, []

    def watch(name: str):
        def hook(module, inputs, output):
            seen = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, 0) + (seen * seen).sum(0)
            counts[name] = counts.get(name, 0) + seen.shape[0]

        return hook

    for name, module in loaded.named_modules():
        if isinstance(module, torch.nn.Linear):
            tied = name == "lm_head" and loaded.config.tie_word_embeddings
            target = "token_embd" if tied else names.get_name(name)
            hooks.append(module.register_forward_hook(watch(f"{target}.weight")))
    with torch.inference_mode():
        for ids in rows[:wanted]:
            loaded(torch.tensor([ids], device=loaded.device))
    for hook in hooks:
        hook.remove()
    return {
        name: (total / counts[name]).cpu().numpy().astype("float32") for name, total in sums.items()
    }
