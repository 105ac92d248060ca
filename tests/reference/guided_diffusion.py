"""Small networks of guided-diffusion: their settings, weights and answers.

The answers were computed with the published implementation (openai/guided-diffusion, MIT, commit
22e0df8183507e13a7813f8d38d51b072ca1e67c) on a CPU: ``k_f32`` as it is published, ``k_f64`` with float64 in place of float32
everywhere. The weights are random. The larger ones are windows, each at a place of its own, of the same numbers.
"""

from tests.reference.stored import Stored

STORED = Stored("guided_diffusion")
