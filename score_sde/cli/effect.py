"""Overrides without effect are refused, with the reason.

A config holds the options of everything that can be chosen, so a config *file* may set any of them. An override is typed for
one command, and its author expects an effect. It has none where the command does not read the section, where another name is
chosen beside it, or where another option makes it idle.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from score_sde.config import ConfigDict, ConfigError
from score_sde.solvers.probability_flow import FIXED

KEPT = ("solver", "likelihood")
"""Sections that training only writes down: commands that come later may choose any name in them."""


def key_of(argument: str) -> str:
    """The key of ``--config.key=value``."""
    return argument.lstrip("-").removeprefix("config.").partition("=")[0]


def refuse_repeated(overrides: Collection[str]) -> None:
    """Refuse an option without a value, and one that is given twice: one of its values would not be used."""
    seen: dict[str, str] = {}
    for argument in overrides:
        key = key_of(argument)
        if "=" not in argument:
            raise ConfigError(f"config.{key} needs a value: --config.{key}=VALUE")
        if key in seen:
            raise ConfigError(f"config.{key} is given more than once, by {seen[key]} and {argument}: give one")
        seen[key] = argument


def refuse_sections(
    overrides: Collection[str], sections: Sequence[str], command: str, reason: str = "the run is trained"
) -> None:
    """Refuse what is not in the ``sections`` that ``command`` reads from the config of a run."""
    known = " and ".join(filter(None, [", ".join(sections[:-1]), *sections[-1:]])) or "nothing"
    for argument in overrides:
        if key_of(argument).split(".")[0] not in sections:
            raise ConfigError(f"{argument} has no effect on {command}: {reason}, only {known} can be set here")


def refuse_without_effect(
    overrides: Collection[str],
    config: ConfigDict,
    *,
    chosen: Mapping[str, Collection[str]] | None = None,
    idle: Mapping[str, str] | None = None,
    kept: Collection[str] = (),
) -> None:
    """Refuse overrides that change nothing.

    Args:
        overrides: the arguments of the command line, already applied to ``config``.
        config: all of it.
        chosen: section -> the names in it that are used, where these are not its ``name`` alone.
        idle: further keys or sections that change nothing -> the reason.
        kept: sections that are not checked.
    """
    reasons = {**dict(_idle(config)), **(idle or {})}
    for argument in overrides:
        key = key_of(argument)
        if key.split(".")[0] in kept:
            continue
        for end in range(key.count(".") + 1, 0, -1):
            if reason := reasons.get(".".join(key.split(".")[:end])):
                raise ConfigError(f"{argument} has no effect: {reason}")
        _refuse_of_another(argument, key, config, chosen or {})


def _refuse_of_another(argument: str, key: str, config: ConfigDict, chosen: Mapping[str, Collection[str]]) -> None:
    """Refuse an option of what is not chosen, at any level."""
    section, parts = config, key.split(".")
    for depth, part in enumerate(parts[:-1]):
        path = ".".join(parts[:depth])
        if "name" in section and isinstance(section[part], ConfigDict):
            names = chosen.get(path) or ((section.name,) if section.name in section else ())
            if names and part not in names:  # an unknown name is refused where it is built
                raise ConfigError(
                    f"{argument} has no effect: it is an option of the {path} {part}, and {', '.join(names)} is chosen"
                )
        section = section[part]


def _idle(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """The options that another option makes idle: the key of each, and the reason."""
    for name, network in config.network.items():
        if name == "name":
            continue
        if network.get("conditional", True) is False:
            for key in ("embedding", "fourier_scale", "logarithm", "sinusoids", "embedding_width"):
                yield f"network.{name}.{key}", "conditional is False, and the network is not told the noise level"
        elif network.get("embedding", "fourier") != "fourier":
            for key in ("fourier_scale", "logarithm"):
                yield f"network.{name}.{key}", f"the embedding is {network.embedding}, and not fourier"
        if network.get("heads") and "head_width" in network:
            yield f"network.{name}.head_width", f"heads = {network.heads} says how many heads there are"
            yield f"network.{name}.narrow_attention", f"heads = {network.heads} says how many heads there are"
        if not network.get("classes", True):
            for key in ("no_class", "early_classes"):
                yield f"network.{name}.{key}", "the network has no classes"
        if network.get("block") == "biggan":
            yield f"network.{name}.resample_with_conv", "blocks of the kind biggan resample by themselves"
        if network.get("progressive_input", "input_skip") != "input_skip":
            yield f"network.{name}.combine", f"progressive_input is {network.progressive_input}, and not input_skip"
    model = config.model
    weighting = config.objective.get(config.objective.name, {}).get("weighting", {}).get("name")
    if model.parameterization != "edm" and weighting != "edm":
        others = f" and the weighting {weighting}" if weighting else ""
        yield "model.sigma_data", f"the parameterization is {model.parameterization}{others}, and only edm uses it"
    counted = ("label", "reversed", "step", "rescaled_step", "nearest_step")
    if model.time_input not in counted and config.objective.name != "ncsn":
        yield "model.labels", f"the time_input is {model.time_input}, which counts no labels"
    if not config.network.get(config.network.name, {}).get("learned_variance", config.network.name == "diffusers"):
        yield "model.variance", "the network has no learned_variance"
    ddpm = config.sde.ddpm
    table = "sde.ddpm.betas is a table of its own"
    for key in ("beta_start", "beta_end", *(("steps", "schedule") if ddpm.betas else ())):
        if ddpm.betas or ddpm.schedule == "cosine":
            yield f"sde.ddpm.{key}", table if ddpm.betas else "sde.ddpm.schedule is cosine"
    if config.sde.name == "ddpm":
        yield "objective.ddpm.steps", "the steps are those of the table, sde.ddpm"
    if config.objective.ddpm.loss == "simple":
        yield "objective.ddpm.variance", "objective.ddpm.loss is simple, in which there is no variance"
    network = config.network.get(config.network.name, {})
    if not network.get("classes", config.network.name == "diffusers"):  # which has its own settings
        yield "training.class_dropout", "the network has no classes"
    if str(config.data.file.path).endswith(".npy"):
        yield "data.file.key", f"{config.data.file.path} holds one array, and keys are those of a .npz"
    if config.data.file.test:
        for name in ("test_fraction", "seed", "held_out_by"):
            yield f"data.file.{name}", f"data.file.test = {config.data.file.test} says what is held out"
    for name, solver in config.solver.items():
        if name != "name":
            yield from _idle_of_solver(f"solver.{name}", solver)
    yield from _idle_of_solver("likelihood.solver.ode", config.likelihood.solver.ode)
    if config.likelihood.target_error is not None:
        yield "likelihood.solver", f"likelihood.target_error = {config.likelihood.target_error:g} chooses the solver"
    if config.likelihood.divergence == "exact":
        yield "likelihood.probes", "the divergence is exact, and takes no probes"
    if config.likelihood.dequantization != "variational":
        reason = f"the dequantization is {config.likelihood.dequantization}, and only variational is trained"
        yield "likelihood.dequantizer", reason


def _idle_of_solver(path: str, options: ConfigDict) -> Iterator[tuple[str, str]]:
    method = options.get("method")
    if method in FIXED:
        if method != "implicit_adams":  # which solves its equations to a tolerance
            yield f"{path}.rtol", f"{path}.method is {method}, which has fixed steps and no tolerance"
            yield f"{path}.atol", f"{path}.method is {method}, which has fixed steps and no tolerance"
    elif method is not None:
        yield f"{path}.steps", f"{path}.method is {method}, which works to rtol and atol"
        yield f"{path}.grid", f"{path}.method is {method}, which works to rtol and atol"
    if "," in str(options.get("grid", "")):
        yield f"{path}.steps", f"{path}.grid is a list of times, which says how many steps there are"
    if options.get("rule") == "sigma":
        yield f"{path}.cap", f"{path}.rule is sigma, and only norm_ratio has a cap"
    if options.get("s_churn", 1) == 0:
        for name in ("s_min", "s_max", "s_noise"):
            yield f"{path}.{name}", f"{path}.s_churn is 0, and no noise is added"
    if options.get("p", 3) < 3:
        yield f"{path}.lower_order_first", f"{path}.p is {options.p}, and only p = 3 has more than one node to begin with"
    if options.get("p", 3) < 2:
        yield f"{path}.lower_order_final", f"{path}.p is 1, which is the lowest order"


def idle_under_budget(name: str, options: ConfigDict, stand_in: str | None) -> Iterator[tuple[str, str]]:
    """Options of the solver ``name`` that --nfe makes idle; ``stand_in`` is the method that takes its place, if one does."""
    if stand_in:
        chosen = options.get("method", name)
        how = "choose a method of fixed steps" if name == "ode" else "choose another solver"
        reason = f"{stand_in} takes the place of {chosen}, which cannot keep to --nfe: leave --nfe away, or {how}"
        yield f"solver.{name}", reason
    elif "steps" in options and name != "annealed_langevin":  # whose steps and corrections are a proportion
        yield f"solver.{name}.steps", "--nfe says how many steps there are"
