"""Calibration text in equal pieces, and the importance matrix that llama.cpp takes from it."""

from __future__ import annotations

from pathlib import Path

from lib import models
from lib.files import content_hash, read_jsonl
from lib.training.conversations import messages_of


def sequences(
    path: Path, tokenizer, samples: int, length: int, seed: int
) -> tuple[list[list[int]], dict]:
    """`samples` sequences of exactly `length` token ids, and {conversations, sequences, tokens}.

    Conversations of a curated JSONL file (a split of their own), in an order that the hash of
    (seed, id) decides, rendered by the chat template, laid end to end and cut: equal lengths batch
    without padding, so no statistic counts a pad token. A piece may hold the end of one
    conversation and the beginning of the next. Raises ValueError when the file holds fewer tokens
    than asked for.
    """
    assert samples >= 1 and length >= 2, (samples, length)
    texts = {}
    for row in read_jsonl(path):
        texts[content_hash(str(seed), row["id"])] = messages_of(row)
    pieces, rest, used = [], [], 0
    for key in sorted(texts):
        text = tokenizer.apply_chat_template(texts[key], tokenize=False)
        rest += tokenizer(text, add_special_tokens=False)["input_ids"]
        used += 1
        while len(rest) >= length and len(pieces) < samples:
            pieces.append(rest[:length])
            rest = rest[length:]
        if len(pieces) == samples:
            break
    if len(pieces) < samples:
        raise ValueError(
            f"{Path(path).name}: {samples} calibration sequences of {length} tokens are asked for,"
            f" its {len(texts)} conversations fill {len(pieces)}; lower the number or the length,"
            " or curate more rows"
        )
    return pieces, {"conversations": used, "sequences": len(pieces), "tokens": samples * length}


def importance(model_name: str, rows: list[list[int]], wanted: int) -> dict:
    """Importance of input channels: {GGUF tensor name: float32 array [input channels]}.

    It is the mean square of what arrives at each input channel of a linear layer, over `wanted`
    texts of token ids; llama.cpp quantises with errors weighed by it (its pull request 4861). The
    output table's entry stands under token_embd.weight when the tables are tied, else under
    output.weight. Raises ValueError when there are fewer texts than wanted.
    """
    import gguf
    import torch

    if len(rows) < wanted:
        raise ValueError(
            f"{len(rows)} calibration texts, {wanted} were asked for; lower the number or curate"
            " more rows (00_curate)"
        )
    model, _ = models.load(model_name, "float32")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    sums, counts, hooks = {}, {}, []

    def watch(name: str):
        def hook(module, inputs, output):
            arrived = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, 0) + (arrived * arrived).sum(0)
            counts[name] = counts.get(name, 0) + arrived.shape[0]

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            tied = name == "lm_head" and model.config.tie_word_embeddings
            target = "token_embd" if tied else names.get_name(name)
            hooks.append(module.register_forward_hook(watch(f"{target}.weight")))
    with torch.inference_mode():
        for ids in rows[:wanted]:
            model(torch.tensor([ids], device=model.device))
    for hook in hooks:
        hook.remove()
    means = {name: total / counts[name] for name, total in sums.items()}
    return {name: mean.cpu().numpy().astype("float32") for name, mean in means.items()}
