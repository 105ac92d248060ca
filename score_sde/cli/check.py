"""The command ``data check``: what is found in data, and which options it suggests."""

import argparse
import math
from pathlib import Path

from score_sde.cli.data import data_of
from score_sde.cli.effect import refuse_sections, refuse_without_effect
from score_sde.config import override, read_config
from score_sde.data import largest_distance
from score_sde.sdes.levels import langevin_step, level_count


def data(options: argparse.Namespace, overrides: list[str]) -> int:
    config = override(read_config(options.config), overrides)
    refuse_sections(overrides, options.sections, "data check", "it looks at the data alone")
    refuse_without_effect(overrides, config, kept=("sde", "solver"))
    found = data_of(config, Path.cwd())
    spec, name = found.spec, config.data.name
    kind = f"{spec.levels} levels" if spec.levels else "continuous"
    print(f"{name}: {len(found.train)} training and {len(found.test)} test samples of shape {spec.shape}, {kind}")
    largest = largest_distance(found.train)
    among = "all" if largest.compared == len(found.train) else f"{largest.compared} drawn at random"
    sigma_max, sigma_min, steps = largest.value, config.sde.ve.sigma_min, config.solver.annealed_langevin.corrections
    first, second = largest.rows
    print(f"largest distance: {sigma_max:.4g} in model coordinates, of training samples {first} and {second}, among {among}")
    print("for the SDE ve (Song and Ermon 2020, Techniques 1, 2 and 4):")
    print(f"  --config.sde.ve.sigma_max={sigma_max:.4g}")
    if spec.dim < 5:
        print(f"  in {spec.dim} dimensions any number of levels overlaps")
        return 0
    count = level_count(spec.dim, sigma_max, sigma_min)
    ratio = (sigma_max / sigma_min) ** (1 / (count - 1))
    snr = math.sqrt(langevin_step(sigma_min, ratio, steps) / 2) / sigma_min
    print(f"  --config.model.labels={count}   levels down to sigma_min = {sigma_min:g}, in the ratio {ratio:.4g}")
    print(f"  --config.solver.annealed_langevin.steps={count - 1} --config.solver.annealed_langevin.snr={snr:.4g}")
    return 0
