"""What the plan of a run says of its objective."""

from __future__ import annotations

from aift_ray.config import RunConfig
from aift_ray.config.preference_config import REFERENCED


def objective_lines(config: RunConfig) -> list[tuple[str, str]]:
    """What answers are compared by; nothing where they are trained."""
    name, how = config.objective, config.preference
    if name == "sft":
        return []
    if name == "grpo":
        return _generation(config)
    words: list[str] = [name]
    if name != "reward":
        words.append(f"beta {how.beta_of(name):g}")
    if name in REFERENCED:
        words.append(f"against {how.reference or 'the model as the run begins'}")
    return [("objective", ", ".join(words))]


def _generation(config: RunConfig) -> list[tuple[str, str]]:
    """How completions are generated and rewarded."""
    how = config.grpo
    weights = how.reward_weights or [1.0] * len(how.reward)
    rewards = zip(how.reward, weights, strict=True)
    second = " from a second model" if config.method == "full" else ""
    beta = f", beta {how.beta:g}{second}" if how.beta else ""
    most = f"{how.num_generations} completions a prompt, {how.max_completion_length} tokens each"
    each = how.parts(config.training.gradient_accumulation_steps) * how.num_iterations
    trained = f"; trained in {each} steps" if each > 1 else ""
    actors = config.rollout_actors
    ahead = ", each generation during the training of the one before" * how.asynchronous
    engine = " with vLLM" * (how.engine == "vllm")
    by = f"; by {actors} Ray actors{engine} beside the workers{ahead}" if actors else ""
    if config.generates_in_turn:
        by = "; with vLLM, in turn with the training on the same CPUs or GPUs (on a GPU it sleeps "
        by += "while the workers train, on a CPU it keeps its memory)"
    of = {"group": "a prompt's", "batch": "all"}.get(how.scaling)
    scaled = f", divided by the deviation of {of} rewards" if of else ""
    return [
        (
            "objective",
            f"grpo, loss {how.loss_type}{beta}, advantages by {how.estimator}{scaled}",
        ),
        ("rewards", ", ".join(name if w == 1 else f"{name} x {w:g}" for name, w in rewards)),
        ("generation", f"{most} at most, {how.rollout_batch_size} at a time{trained}{by}"),
    ]
