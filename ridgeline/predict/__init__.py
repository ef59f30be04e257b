"""A trace on a device: the time of every kernel, what bounds it, and what that stands on."""

from ridgeline.predict.prediction import KernelTime, Prediction
from ridgeline.predict.times import predict

__all__ = ["KernelTime", "Prediction", "predict"]
