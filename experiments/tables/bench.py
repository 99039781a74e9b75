"""One cell: pre-trains, trains and measures a recipe on an analytic video."""

import functools
import json

import jax
import jax.numpy as jnp

from experiments import objectives
from experiments.tables import networks, videos
from experiments.tables.fit import fit
from vidstep import losses, samplers
from vidstep.causal.packed import PackedNetwork
from vidstep.causal.rollout import rollout, self_rollout
from vidstep.losses import Batch
from vidstep.models.cond import Cond

# The student's times: n steps use the first n, in training and in sampling.
TIMES = (1.0, 0.75, 0.5, 0.25)
PRETRAIN = {"steps": 1500, "rate": 5e-3, "batch": 256}
MODELS = {
  "clip": networks.ClipMLP(),
  "map": networks.ClipMLP(second_time=True),
  "causal": networks.CausalMLP(),
}
GENERATORS = ("student", "model")
CLIPS = 8192  # that a distance is measured on
DATA = 1 << 15  # clips that a seed trains on
EVALUATION = 12345  # seed of all evaluation


def student(video, objective, *, steps, rates, **more):
  """A recipe: everything that a cell depends on, but the seed. JSON.

  Args:
    video: "gaussian" or "mixture".
    objective: section of a config, {"name": ..., keyword arguments}; None for the exact teacher.
    steps: steps of the schedule, all roles together.
    rates: role -> first learning rate, falling to 0 as a cosine.
    **more: see the comments in `DEFAULTS`.

  Raises:
    ValueError: for a setting that does not exist.
  """
  unknown = set(more) - set(DEFAULTS)
  if unknown:
    raise ValueError(f"A recipe has no {', '.join(sorted(unknown))}: there are {list(DEFAULTS)}.")
  fixed = {"video": video, "objective": objective, "steps": steps, "rates": rates}
  return fixed | DEFAULTS | more


DEFAULTS = {
  "model": "clip",  # key of MODELS: the student's network
  "sampler": "consistency",  # or "euler", "flow_map", "rollout"
  "at": [1, 2, 4],  # steps of sampling
  "init": "flow_matching",  # or "random": what the student starts from
  "before": None,  # or a recipe: the student starts from its student
  "teacher": "exact",  # "clip", "causal" (pre-trained networks) or "before" (its student)
  "forcing": None,  # of a causal student: "teacher" or "diffusion"
  "dtype": None,  # of the student's layers
  "batch": 256,
  "b1": 0.9,  # Adam's momentum
  "looks": 0,  # see fit
  "clips": CLIPS,
  "pretrain": PRETRAIN,
}


# ------------------------------------------------------------------------------------------------
# Measuring
# ------------------------------------------------------------------------------------------------


def measure(recipe, seed):
  """Trains a recipe under a seed, all its stages; distances and mode coverage, {metric@steps}."""
  values = {"updates": 0, "others": 0}
  if recipe["objective"] is None:
    return values | judge_all(recipe, None, seed)
  for stage, params in stages(recipe, seed):
    counted = count(stage)
    values |= {key: values[key] + counted[key] for key in counted}
    values |= judge_all(stage, params, seed)
  return values


def count(recipe):
  """Updates of the student, and of all other roles."""
  objective = make_objective(recipe)
  due = [objective.due(step) for step in range(recipe["steps"])]
  updates = sum(objective.roles[0] in roles for roles in due)
  return {"updates": updates, "others": sum(map(len, due)) - updates}


def judge_all(recipe, params, seed):
  """`judge` at all steps of the recipe, {metric@steps: value}."""
  return {f"{k}@{n}": v for n in recipe["at"] for k, v in judge(recipe, params, seed, n).items()}


def judge(recipe, params, seed, steps):
  """Distance and, on the mixture, coverage of samples in so many steps; params None: exact."""
  video = videos.video(recipe["video"])
  keys = jax.random.split(jax.random.fold_in(jax.random.key(EVALUATION), seed), 3)
  noise = jax.random.normal(keys[0], (recipe["clips"], *videos.SHAPE))
  draw = _sampler(recipe["model"], recipe["sampler"], steps, params is None)
  x = draw(video.law if params is None else params, noise, keys[1])
  values = {"w2": video.distance(x, video.draw(keys[2], recipe["clips"]))}
  if recipe["video"] == "mixture":
    values["coverage"], values["worst"] = video.coverage(x)
  return values


@functools.cache
def _sampler(model, sampler, steps, exact):
  field = videos.velocity if exact else networks.velocity_of(MODELS[model])
  few, even = [*TIMES[:steps], 0.0], samplers.timesteps(steps)

  def draw(params, noise, key):
    at = lambda x, t: field(params, x, t, None)
    if sampler == "flow_map":
      return samplers.sample(
        lambda x, t, s: field(params, x, t, None, s=s), noise, even, solver="flow_map"
      )
    if sampler == "euler":
      return samplers.sample(at, noise, even)
    if sampler == "consistency":
      return samplers.sample(at, noise, few, solver="consistency", key=key)
    return rollout(PackedNetwork(field, 1), params, noise, Cond(), key, chunk=1, times=few[:-1])[0]

  return jax.jit(draw)


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def stages(recipe, seed):
  """Trains what comes before a recipe, then itself: yields (recipe, weights of its student)."""
  params = None
  if recipe["before"]:
    for stage, params in stages(recipe["before"], seed):
      yield stage, params
  fitted = train(recipe, seed, before=params)
  yield recipe, fitted.nets[make_objective(recipe).roles[0]]


def train(recipe, seed, before=None, pool=None):
  """Trains a recipe under a seed; the program is compiled once for all seeds.

  Args:
    recipe: see `student`.
    seed: of data, initialisation and training.
    before: weights of the stage before, which the student then starts from.
    pool: the clips, instead of `data`: in another precision.

  Returns:
    A `Fitted`.
  """
  objective = make_objective(recipe)
  nets = {role: start(recipe, role, seed) for role in objective.roles}
  nets |= {name: _frozen(recipe, name, seed, before) for name in objective.frozen}
  if before is not None:
    nets[objective.roles[0]] = before
  pool = data(recipe["video"], seed) if pool is None else pool
  unread = ("video", "init", "before", "at", "clips", "pretrain", "sampler")
  key = json.dumps({k: v for k, v in recipe.items() if k not in unread}, sort_keys=True)
  return _program(key)(nets, pool, jax.random.key(seed))


@functools.cache
def _program(text):
  recipe = json.loads(text)
  return jax.jit(
    lambda nets, pool, key: fit(
      make_objective(recipe),
      nets,
      pool,
      steps=recipe["steps"],
      rates=recipe["rates"],
      key=jax.random.fold_in(key, 1),
      batch=recipe["batch"],
      b1=recipe["b1"],
      looks=recipe["looks"],
      condition=_condition(recipe["forcing"]),
    )
  )


def make_objective(recipe):
  """The objective of a recipe on its networks."""
  model = MODELS[recipe["model"]]
  if recipe["dtype"]:
    model = model.clone(dtype=jnp.dtype(recipe["dtype"]))
  velocity, clip = networks.velocity_of(model), networks.velocity_of(MODELS["clip"])
  teachers = {
    "exact": videos.velocity,
    "clip": clip,
    "causal": networks.velocity_of(MODELS["causal"]),
    "before": velocity,
  }
  features = networks.features_of(MODELS["clip"])
  return objectives.make_objective(
    recipe["objective"],
    {
      "velocity": velocity,
      "stage_one": velocity,
      "teacher": teachers[recipe["teacher"]],
      "fake": clip,
      "rollout": self_rollout(PackedNetwork(velocity, 1), chunk=1),
      "fake_features": features,
      "teacher_features": features,
      "critic": networks.critic,
    },
  )


def start(recipe, role, seed):
  """Weights that a role starts from."""
  if role == "critic":
    return networks.init_critic(jax.random.key(seed))
  if role not in GENERATORS:  # the fake score, of whole clips
    return pretrained(recipe, "clip", None, seed)
  if recipe["init"] == "random":
    return networks.init(MODELS[recipe["model"]], jax.random.key(seed))
  return pretrained(recipe, recipe["model"], recipe["forcing"], seed)


def _frozen(recipe, name, seed, before):
  if name == "stage_one" or recipe["teacher"] == "before":
    return before
  if recipe["teacher"] == "exact":
    return videos.video(recipe["video"]).law
  forcing = "teacher" if recipe["teacher"] == "causal" else None
  return pretrained(recipe, recipe["teacher"], forcing, seed)


def pretrained(recipe, model, forcing, seed):
  """A network trained by flow matching: what a student has learnt before it is distilled."""
  return _pretrained(recipe["video"], model, forcing, json.dumps(recipe["pretrain"]), seed)


@functools.cache
def _pretrained(video, model, forcing, setting, seed):
  nets = {"model": networks.init(MODELS[model], jax.random.key(seed))}
  return _pretraining(model, forcing, setting)(nets, data(video, seed), jax.random.key(seed))


@functools.cache
def _pretraining(model, forcing, setting):
  setting = json.loads(setting)
  velocity = networks.velocity_of(MODELS[model])
  objective = losses.flow_matching(velocity, chunk=1 if forcing == "diffusion" else None)

  def run(nets, pool, key):
    rates, steps, batch = {"model": setting["rate"]}, setting["steps"], setting["batch"]
    how = {"steps": steps, "rates": rates, "key": key, "batch": batch}
    return fit(objective, nets, pool, **how, condition=_condition(forcing)).nets["model"]

  return jax.jit(run)


def _condition(forcing):
  """Clips -> `Batch`, which holds the clean video where a student is teacher forced."""
  return lambda x0: Batch(x0, Cond(clean=x0 if forcing == "teacher" else None))


@functools.cache
def data(video, seed):
  """The clips that a seed trains on."""
  return videos.video(video).draw(jax.random.fold_in(jax.random.key(DATA), seed), DATA)
