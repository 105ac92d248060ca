"""The order of an epoch."""

from score_sde.data import EpochOrder


def test_each_epoch_sees_every_sample_once():
    order = EpochOrder(80, seed=0)
    seen = [row for step in range(10) for row in order.rows(16 * step, 16).tolist()]
    assert sorted(seen[:80]) == sorted(seen[80:160]) == list(range(80))
    assert seen[:80] != seen[80:160]
    assert seen[:80] != EpochOrder(80, seed=1).rows(0, 80).tolist()


def test_a_step_has_its_rows_wherever_training_began():
    """Batches that cross an epoch, or are longer than one, asked for in any order."""
    whole = EpochOrder(7, seed=3).rows(0, 60).tolist()
    order = EpochOrder(7, seed=3)
    for start, size in ((40, 20), (0, 5), (5, 10), (20, 0), (13, 1)):
        assert order.rows(start, size).tolist() == whole[start : start + size]
