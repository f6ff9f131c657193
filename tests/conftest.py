"""The tests are of the CPU: what they compare bit for bit, a GPU computes in any order.

GPUs are hidden from them, and from the processes that they start; `make gpu` is for the GPU.
SACGLAM_TEST_GPU=1 leaves GPUs visible.
"""

from __future__ import annotations

import os

if os.environ.get("SACGLAM_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
