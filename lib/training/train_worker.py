"""One adapter trained by several processes, a GPU each.

Each is `torchrun -m lib.training.train_worker job.json`.
`launch` writes the job, starts torchrun (accelerate inside the Trainer does the rest) and brings
the result back, so that a notebook trains on all visible GPUs. Plain data parallelism: frozen
weights are on every GPU, gradients of the adapters alone are exchanged, once a step.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lib import models
from lib.files import ROOT, atomic_write_json
from lib.training import train


def fit_on_all_gpus(model, data: dict, folder: Path, job: dict, probe=None) -> dict:
    """`train.fit` on the one device there is; on several visible GPUs `launch`, without a probe."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus > 1:
        return launch(model, data, folder, job, gpus)
    splits, settings = (data["train"], data["valid"]), job["settings"]
    return train.fit(model, *splits, folder, settings, probe, job["fingerprint"])


def launch(model, data: dict, folder: Path, job: dict, processes: int, cpu: bool = False) -> dict:
    """Train in `processes` processes, put the adapter into `model` (peft), return what `fit` does.

    data: {"train", "valid"}: datasets; job: {model, base_dtype, model_revision, lora_r, lora_alpha,
    lora_dropout, settings, fingerprint}. The model leaves the GPU while others need it. A killed
    call goes on when made again. Raises RuntimeError when a process fails.
    """
    import peft
    import torch
    from safetensors.torch import load_file

    folder.mkdir(parents=True, exist_ok=True)
    shared = folder / "processes"
    shutil.rmtree(shared, ignore_errors=True)
    for name, rows in data.items():
        rows.save_to_disk(shared / name)
    atomic_write_json(shared / "job.json", {**job, "folder": str(folder), "shared": str(shared)})
    device = next(model.parameters()).device
    model.to("cpu")
    torch.cuda.empty_cache()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "lib.training.train_worker",
        str(shared / "job.json"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    )
    if done.returncode:
        raise RuntimeError(
            f"training on {processes} GPUs failed with exit code {done.returncode}; its lines above"
            " say why. Run the cell again to go on from the last checkpoint"
        )
    peft.set_peft_model_state_dict(model, load_file(shared / "adapter.safetensors"))
    model.to(device)
    return json.loads((shared / "result.json").read_text())


def main(path: str) -> None:
    """Train this process's share of the job; the first writes adapter.safetensors, result.json."""
    import datasets
    import peft
    import torch
    from accelerate import PartialState
    from safetensors.torch import save_file

    state = PartialState(cpu=not torch.cuda.is_available())
    job = json.loads(Path(path).read_text())
    shared = Path(job["shared"])
    if torch.cuda.is_available():
        torch.cuda.set_device(state.local_process_index)
    model, _ = models.load(job["model"], job["base_dtype"], job["model_revision"])
    adapted = train.add_lora(
        model, job["lora_r"], job["lora_alpha"], job["lora_dropout"], job["settings"]["seed"]
    )
    data = {name: datasets.load_from_disk(str(shared / name)) for name in ("train", "valid")}
    result = train.fit(
        adapted,
        data["train"],
        data["valid"],
        Path(job["folder"]),
        job["settings"],
        None,
        job["fingerprint"],
    )
    if state.is_main_process:
        weights = {
            key: value.contiguous().cpu()
            for key, value in peft.get_peft_model_state_dict(adapted).items()
        }
        save_file(weights, shared / "adapter.safetensors")
        atomic_write_json(shared / "result.json", result)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
