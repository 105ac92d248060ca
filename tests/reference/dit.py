"""A small network of DiT: its settings, weights and answers.

The answers were computed with the published implementation (facebookresearch/DiT, commit
ed81ce2229091fd4ecc9a223645f95cf379d582b, with timm 0.6.12) on a CPU: ``k_f32`` as it is published, ``k_f64`` with float64 in
place of float32 everywhere. The weights are random.
"""

from tests.reference.stored import Stored

STORED = Stored("dit")
