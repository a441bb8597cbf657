"""What pytest does not look for doctests in: modules whose package is not for this system."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["src/inrun/kernels/_on_gpu.py"]
