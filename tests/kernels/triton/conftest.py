"""GPU kernels run on a GPU where there is one, else in Triton's interpreter."""

from tests.gpu import device, patched_once_a_launch, sums_by_row  # noqa: F401
