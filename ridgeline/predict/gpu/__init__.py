"""Time models of kernels on GPUs: what physics gives, and few constants fitted to measured points.

One module a kind of kernel; :mod:`ridgeline.predict.gpu.kinds` says what each offers.
"""
