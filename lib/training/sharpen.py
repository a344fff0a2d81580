"""Training towards a temperature: a model learns its own distribution, sharpened.

The target at a position is softmax(z / T) of the model's own logits z there, T below 1; the
student's plain softmax is drawn towards it. T 0 is the limit: all mass on the most likely token,
which on a greedy text is cross-entropy on its tokens. Of a sharpened distribution the k most likely
tokens are kept; `write` measures what that leaves out. A stored position takes 8 k bytes instead of
4 a word of the vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from lib.training.conversations import IGNORED


def sharpened(logits, temperature: float, k: int):
    """The k most likely tokens of softmax(z / T): (ids, probabilities, kept mass).

    logits: [positions, vocabulary]; ids int32 and probabilities float32 [positions, k], kept mass
    [positions]. Probabilities are those of the k most likely tokens, scaled to sum to 1. Raises
    ValueError unless temperature is above 0; at 0 train on the tokens themselves.
    """
    import torch

    if temperature <= 0:
        raise ValueError(
            f"a target temperature of {temperature} has no distribution; 0 is plain cross-entropy"
        )
    top = torch.softmax(logits.float() / temperature, -1).topk(min(k, logits.shape[-1]))
    mass = top.values.sum(-1)
    return top.indices.int(), top.values / mass[:, None], mass


def divergence(logits, target_ids, target_probabilities):
    """Summed KL divergence, nats, of softmax(logits) from the targets.

    logits: [positions, vocabulary]; ids and probabilities: [positions, k], unused places have
    probability 0. A one-hot target gives cross-entropy. The targets' own entropy is taken off, so
    that 0 is reached by the target itself.
    """
    import torch

    taken = logits.float().log_softmax(-1).gather(-1, target_ids.long())
    return (
        torch.xlogy(target_probabilities, target_probabilities) - target_probabilities * taken
    ).sum()


def write(
    model,
    examples,
    path: Path,
    temperatures: dict[str, float],
    k: int = 64,
    compared: tuple[int, ...] = (1, 8, 64, 512),
) -> list[dict]:
    """Store the sharpened targets of the examples in `temperatures` as safetensors, atomically.

    Args:
        examples: dataset with id, input_ids, labels; targets belong to the positions that carry
            loss, in order.
        temperatures: {example id: target temperature above 0}.
        compared: other numbers of kept tokens to report on.
    Returns what keeping that many tokens leaves out, a row each: {k, positions, bytes (a position),
    kept_mass (mean), least_kept_mass, missed (mean nats that the kept target lies from the full
    one, -log of the kept mass)}; the last row keeps the whole vocabulary. No rows when there is
    nothing to store.
    """
    import torch
    from safetensors.torch import save_file

    tensors, masses, vocabulary, counts = {}, [], 0, sorted({k, *compared})
    with torch.inference_mode():
        for example in examples:
            if example["id"] not in temperatures:
                continue
            logits = _learned_logits(model, example)
            vocabulary, temperature = logits.shape[-1], temperatures[example["id"]]
            ids, probabilities, _ = sharpened(logits, temperature, k)
            tensors[f"{example['id']}.ids"] = ids.cpu().contiguous()
            tensors[f"{example['id']}.probabilities"] = probabilities.cpu().contiguous()
            masses.append(_kept_masses(logits, temperature, counts))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    save_file(tensors, scratch)
    scratch.replace(path)
    return _left_out(masses, counts, vocabulary)


def _learned_logits(model, example: dict):
    """Logits float32 [positions that carry loss, vocabulary] of one example."""
    import torch

    ids = torch.tensor([example["input_ids"]], device=model.device)
    logits = model(input_ids=ids).logits[0, :-1]
    learned = torch.tensor(example["labels"][1:]) != IGNORED
    return logits[learned.to(logits.device)].float()


def _kept_masses(logits, temperature: float, counts: list[int]):
    """Mass of the most likely tokens, float64 [positions, counts], for each number of them."""
    import torch

    vocabulary = logits.shape[-1]
    full = torch.softmax(logits / temperature, -1)
    running = full.topk(min(max(counts), vocabulary)).values.cumsum(-1)
    return running[:, [min(count, vocabulary) - 1 for count in counts]].double().cpu()


def _left_out(masses: list, counts: list[int], vocabulary: int) -> list[dict]:
    """The rows that `write` returns."""
    import torch

    if not masses:
        return []
    kept = torch.cat(masses).clamp(max=1.0).T
    rows = [
        {
            "k": count,
            "positions": len(mass),
            "bytes": 8 * count,
            "kept_mass": float(mass.mean()),
            "least_kept_mass": float(mass.min()),
            "missed": float(-mass.log().mean()),
        }
        for count, mass in zip(counts, kept, strict=True)
    ]
    whole = {"k": vocabulary, "positions": kept.shape[1], "bytes": 4 * vocabulary}
    return [*rows, whole | {"kept_mass": 1.0, "least_kept_mass": 1.0, "missed": 0.0}]


def read(path: Path | None) -> dict:
    """{example id: (ids, probabilities)} of a file of `write`; empty without one."""
    if path is None:
        return {}
    from safetensors.torch import load_file

    tensors = load_file(path)
    names = {name.rsplit(".", 1)[0] for name in tensors}
    return {name: (tensors[f"{name}.ids"], tensors[f"{name}.probabilities"]) for name in names}


def attach(batch: dict, examples: list[dict], targets: dict) -> dict:
    """The batch with target_ids and target_probabilities [learned positions, k], row after row.

    Examples without soft targets get one-hot ones on their labels; a batch without any soft target
    is left as it is, and so is trained with plain cross-entropy. Raises ValueError when the targets
    are of another text.
    """
    import torch

    if not any(example["id"] in targets for example in examples):
        return batch
    width = max(ids.shape[1] for ids, _ in targets.values())
    all_ids, all_probabilities = [], []
    for example, row in zip(examples, batch["labels"], strict=True):
        labels = row[1:][row[1:] != IGNORED]
        ids = torch.zeros(len(labels), width, dtype=torch.int32)
        probabilities = torch.zeros(len(labels), width)
        if example["id"] in targets:
            own_ids, own_probabilities = targets[example["id"]]
            if len(own_ids) != len(labels):
                raise ValueError(
                    f"{example['id']}: {len(labels)} positions with loss, {len(own_ids)} with"
                    " targets; write them again"
                )
            ids[:, : own_ids.shape[1]] = own_ids
            probabilities[:, : own_ids.shape[1]] = own_probabilities
        else:
            ids[:, 0], probabilities[:, 0] = labels, 1.0
        all_ids.append(ids)
        all_probabilities.append(probabilities)
    return batch | {
        "target_ids": torch.cat(all_ids),
        "target_probabilities": torch.cat(all_probabilities),
    }
