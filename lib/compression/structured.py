"""Structured pruning of a Llama: layers, MLP neurons and groups of heads go, and the file shrinks.

Every function works in place and leaves a plain Llama whose config tells its new shape, so that
`save_pretrained` writes a checkpoint that loads anywhere. Load the model again for the next
variant.
"""

from __future__ import annotations


def activation_statistics(model, sequences: list[list[int]], batch: int = 8) -> dict:
    """One pass over calibration text, for all three kinds of importance.

    sequences: equal lengths, from `calibration.sequences`.
    Returns numpy arrays: influence [layers], 1 - cosine between a layer's input and output, mean
    over tokens (block influence, Men et al. 2024, "ShortGPT"); neurons [layers, MLP width] and
    heads [layers, heads], the expected squared contribution to the residual stream: mean square of
    an input times the squared norm of its column of down_proj or o_proj, summed over a head's
    columns.
    """
    import torch

    layers, tokens = model.model.layers, sum(map(len, sequences))
    turned, squares, hooks = _watch(layers)
    try:
        with torch.inference_mode():
            for start in range(0, len(sequences), batch):
                ids = torch.tensor(sequences[start : start + batch], device=model.device)
                model.model(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()

    def contribution(kind: str, weights: list):
        norms = [weight.detach().float().pow(2).sum(0).double().cpu() for weight in weights]
        parts = [squares[kind][index] / tokens * norm for index, norm in enumerate(norms)]
        return torch.stack(parts)

    neurons = contribution("mlp", [layer.mlp.down_proj.weight for layer in layers])
    columns = contribution("attention", [layer.self_attn.o_proj.weight for layer in layers])
    heads = columns.view(len(layers), model.config.num_attention_heads, -1).sum(-1)
    influence = (turned / tokens).numpy()
    return {"influence": influence, "neurons": neurons.numpy(), "heads": heads.numpy()}


def _watch(layers) -> tuple:
    """Sums that every forward pass adds to, and the hooks that do it, to be removed.

    Returns (1 - cosine [layers], {"mlp": of down_proj, "attention": of o_proj}, hooks), sums over
    tokens; the middle one holds {layer: squares of the inputs}.
    """
    import torch

    turned = torch.zeros(len(layers), dtype=torch.float64)
    squares: dict[str, dict] = {"mlp": {}, "attention": {}}

    def of_layer(index: int):
        def hook(module, args, output):
            after = (output[0] if isinstance(output, tuple) else output).float()
            cosine = torch.cosine_similarity(args[0].float(), after, dim=-1)
            turned[index] += (1 - cosine).sum().double().cpu()

        return hook

    def of_input(kind: str, index: int):
        def hook(module, args):
            energy = args[0].float().pow(2).flatten(0, -2).sum(0).double().cpu()
            squares[kind][index] = squares[kind].get(index, 0) + energy

        return hook

    hooks = []
    for index, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(of_layer(index)))
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(of_input("mlp", index)))
        output = layer.self_attn.o_proj
        hooks.append(output.register_forward_pre_hook(of_input("attention", index)))
    return turned, squares, hooks


def layers_to_keep(influence, share: float) -> list[int]:
    """Layers that stay, ascending, when the `share` with the least influence goes, rounded."""
    import numpy as np

    count = len(influence)
    gone = round(share * count)
    assert 0 <= gone < count, f"{share:.0%} of {count} layers leaves none"
    return sorted(np.argsort(influence, kind="stable")[gone:].tolist())


def width_to_keep(width: int, share: float, multiple: int) -> int:
    """The multiple of `multiple` nearest to MLP width `width` less `share`, at least one multiple.

    Quantisation groups and GGUF blocks (256) want such widths. ValueError when the full width is no
    multiple.
    """
    if width % multiple:
        raise ValueError(
            f"MLP width {width} is no multiple of {multiple}; choose a divisor of it for"
            " width_multiple"
        )
    return min(width, max(multiple, round(width * (1 - share) / multiple) * multiple))


def groups_to_keep(kv_heads: int, heads: int, hidden: int, share: float) -> int:
    """Key/value heads that stay, each with its query heads, when about `share` goes.

    transformers loads a Llama only if its number of query heads divides the hidden size, so the
    nearest allowed number is taken. At least one stays.
    """
    per_group = heads // kv_heads
    allowed = [kept for kept in range(1, kv_heads + 1) if hidden % (kept * per_group) == 0]
    return min(allowed, key=lambda kept: (abs(kept - kv_heads * (1 - share)), -kept))


def drop_layers(model, keep: list[int]):
    """Keep the named layers alone, in order."""
    import torch

    layers = [model.model.layers[index] for index in keep]
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index  # the place of its keys and values in the cache
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    return model


def narrow_mlp(model, neurons, width: int):
    """Keep the `width` most important neurons a layer; neurons: importance [layers, MLP width]."""
    assert len(neurons) == len(model.model.layers), (len(neurons), len(model.model.layers))
    for layer, importance in zip(model.model.layers, neurons, strict=True):
        kept = _best(importance, width)
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            _cut(linear, kept, 0)
        _cut(layer.mlp.down_proj, kept, 1)
        layer.mlp.intermediate_size = width
    model.config.intermediate_size = width
    return model


def drop_head_groups(model, heads, kept_groups: int):
    """Keep the most important key/value heads of each layer with all their query heads.

    heads: importance [layers, heads]. A group of query heads shares one key/value head, so they
    can only go together.
    """
    import numpy as np

    config = model.config
    size, per_group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    # both fields change together: a config is checked whenever one is set
    for layer, importance in zip(model.model.layers, np.asarray(heads), strict=True):
        groups = _best(importance.reshape(-1, per_group).sum(1), kept_groups)
        queries = [group * per_group + place for group in groups for place in range(per_group)]
        key_rows = [head * size + place for head in groups for place in range(size)]
        query_rows = [head * size + place for head in queries for place in range(size)]
        attention = layer.self_attn
        _cut(attention.q_proj, query_rows, 0)
        _cut(attention.k_proj, key_rows, 0)
        _cut(attention.v_proj, key_rows, 0)
        _cut(attention.o_proj, query_rows, 1)
    config.head_dim = size
    config.num_attention_heads = kept_groups * per_group
    config.num_key_value_heads = kept_groups
    return model


def _best(importance, count: int) -> list[int]:
    """Places of the `count` largest values, ascending; the earlier of equals stays."""
    import numpy as np

    assert 1 <= count <= len(importance), f"cannot keep {count} of {len(importance)}"
    return sorted(np.argsort(-np.asarray(importance), kind="stable")[:count].tolist())


def _cut(linear, kept: list[int], axis: int) -> None:
    """Keep the rows (axis 0, outputs) or columns (axis 1, inputs) of a linear."""
    import torch

    index = torch.tensor(kept, device=linear.weight.device)
    linear.weight = torch.nn.Parameter(
        linear.weight.detach().index_select(axis, index), requires_grad=False
    )
    if axis == 0:
        linear.out_features = len(kept)
        if linear.bias is not None:
            linear.bias = torch.nn.Parameter(linear.bias.detach()[index], requires_grad=False)
    else:
        linear.in_features = len(kept)
