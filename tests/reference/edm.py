"""Small networks of EDM: their settings, weights and answers.

The answers were computed with the published implementation (NVlabs/edm, commit 008a4e5316c8e3bfe61a62f874bddba254295afb) on a
CPU: ``k_f32`` as it is published, ``k_f64`` with float64 in place of float32 everywhere. The weights are random.
"""

from tests.reference.stored import Stored

STORED = Stored("edm")
