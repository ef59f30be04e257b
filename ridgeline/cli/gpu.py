"""The command that tunes GPU kernels."""

from __future__ import annotations

from ridgeline.cli import support
from ridgeline.cli.app import Json, app


@app.command(epilog="Example: ridgeline tune")
def tune(as_json: Json = False) -> None:
    """Try out tiles of the GPU's kernels, and keep the fastest for this GPU; takes minutes."""
    from ridgeline.loading import require_gpu, require_run_extra

    require_run_extra()
    require_gpu("tune on the machine whose GPU it is")
    import torch

    from ridgeline.kernels.triton.configs import tuned_path
    from ridgeline.kernels.triton.runtime import default_device
    from ridgeline.kernels.triton.tune import tune as run
    from ridgeline.kernels.triton.tune import write
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report.tables import progress
    from ridgeline.report.tune import show_tuned

    device = default_device()
    path = tuned_path(torch.cuda.get_device_name(device))
    refuse_unwritable(path)
    with progress(support.errors()) as report:
        found = list(run(device, progress=report))
    write(path, found)
    if as_json:
        support.print_json({"file": str(path), "tuned": found})
        return
    show_tuned(support.console(), found, path)
