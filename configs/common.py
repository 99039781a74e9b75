"""Every config key with its default. An experiment starts from `base()` and changes values."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
  """The complete config. Keys that are not here do not exist: a typo raises."""
  config = ConfigDict()
  config.seed = 0

  config.data = ConfigDict()
  # Folder made by experiments.record or experiments.synthesize, or "synthetic".
  config.data.path = placeholder(str)
  config.data.batch_size = 16  # over all devices
  config.data.frames = 8  # frames of a clip, context included; latent frames of a latent data set
  config.data.context = 0  # clean first frames that are given, not generated
  config.data.codec = "pixel"  # or the file of a fitted codec; "none" for a latent data set
  config.data.latent_size = placeholder(tuple)  # (h, w) of latents; None: follows from the data
  # Give the networks the clips' captions (the extra "text"), or the text stored with latents.
  config.data.text = False
  config.data.text_tokens = 24  # length of a prompt; longer ones are cut

  # The fields of vidstep.models.dit.VideoDiT. None: follows from codec and data.
  config.model = model()

  # Defaults for every role; nets.<role>.optim overrides them.
  config.optim = optim()

  # nets.<role> = net(init=..., optim=..., model=...), for roles and frozen networks.
  config.nets = ConfigDict()

  # name, and the keyword arguments of that objective in vidstep.losses.
  config.objective = ConfigDict({"name": "flow_matching"})

  # A causal network generates chunk after chunk. None: the whole clip at once.
  config.causal = ConfigDict()
  config.causal.chunk = placeholder(int)  # frames in a chunk
  config.causal.first = placeholder(int)  # frames in the first chunk, if they differ
  # What it learns behind: "teacher", the clean chunks before; "diffusion", noisy ones, each chunk
  # at its own time; None, what the objective puts there (self_forcing: its own).
  config.causal.forcing = placeholder(str)
  config.causal.window = placeholder(int)  # frames that a frame sees, itself included; None: all
  config.causal.sink = placeholder(int)  # first frames of a video that stay visible besides
  # What later chunks read of a generated one: None, its clean frames; "last_step", noisy context.
  config.causal.context = placeholder(str)
  # Reach of gradients through its own rollout. None: the last step of each chunk; "2": two chunks
  # back through the cache; "all".
  config.causal.gradient = placeholder(str)

  # Of adversarial objectives: the head over the features of a diffusion network.
  config.critic = ConfigDict()
  config.critic.dim = 128
  config.critic.blocks = ()  # whose outputs it reads; (): all
  config.critic.pooled = True  # one verdict a video; False: one a token

  config.train = ConfigDict()
  config.train.steps = 1000
  config.train.log_every = 10  # TensorBoard and W&B; metrics.jsonl has every step
  config.train.save_every = 500
  config.train.sample_every = 500  # 0: never
  config.train.accumulate = 1  # microbatches in a step
  config.train.keep = 2  # checkpoints

  # A look at samples of fixed conditions and noise, and warnings in words (docs/diagnosis.md).
  config.diagnose = ConfigDict()
  config.diagnose.every = 0  # steps between looks; 0: with train.sample_every
  config.diagnose.samples = 4  # of each of the eval.videos conditions
  config.diagnose.stop = False  # stop, with a checkpoint, when a collapse has stood
  config.diagnose.patience = 3  # for so many looks

  # How devices share the work (docs/scaling.md); one of the sizes may be -1: all that are left.
  config.mesh = ConfigDict()
  config.mesh.data = -1  # copies of the model, each with its own samples
  config.mesh.fsdp = 1  # devices that share samples and the memory of the weights
  config.mesh.sequence = 1  # devices that share the frames of each video
  config.mesh.tensor = 1  # devices that share each matrix and the heads: "tensor" in `rules`
  config.mesh.rules = "fsdp"  # preset in vidstep.parallel.sharding
  # How frames on different devices attend to each other: "ring", or "all_to_all", which moves less
  # but needs as many heads (of each tensor device) as `sequence` divides.
  config.mesh.sequence_method = "ring"

  # How networks of this run are sampled: during training and as defaults of sample and evaluate.
  config.eval = ConfigDict()
  config.eval.split = "test"
  config.eval.videos = 4  # in pictures drawn while training
  config.eval.steps = 8
  config.eval.solver = "euler"
  config.eval.shift = 1.0
  config.eval.guidance = 1.0
  config.eval.times = ()  # intermediate times of a few-step student, instead of steps and shift
  config.eval.first_times = ()  # those of the first chunk of a causal one, if they differ
  return config


def model() -> ConfigDict:
  """The fields of `VideoDiT`, small."""
  config = ConfigDict()
  config.dim = 128
  config.heads = 4
  config.depth = 4
  config.ffn_dim = placeholder(int)  # None: 4 dim
  config.patch = (1, 4, 4)
  config.in_channels = placeholder(int)
  config.out_channels = placeholder(int)
  config.text_dim = placeholder(int)  # None: no text
  config.image_dim = placeholder(int)  # None: no tokens of an image (Wan's image to video)
  config.image_tokens = 257
  config.action_dim = placeholder(int)  # 0: ignore actions
  config.actions_per_frame = 1
  config.time_scale = 1000.0
  config.second_time = False
  config.prediction = "v"
  config.t_min = 0.05
  config.dtype = "float32"
  config.remat = placeholder(str)  # what blocks keep: a name in vidstep.models.remat; None: all
  config.scan = False
  config.attention = placeholder(str)
  config.features = ()
  return config


def optim() -> ConfigDict:
  """AdamW, its schedule and the moving average of the weights."""
  config = ConfigDict()
  config.lr = 1e-3
  config.warmup = 100
  config.schedule = "constant"  # or "linear", "cosine"
  config.steps = placeholder(int)  # updates of the schedule; None: all the role gets
  config.b1 = 0.9
  config.b2 = 0.99
  config.weight_decay = 0.0
  config.clip = 0.0  # largest gradient norm; 0: no clipping
  config.muon = placeholder(float)  # rate of matrices under Muon; None: AdamW for all
  config.ema = "constant:0.999"  # or "power:0.05", "none"
  return config


def net(
  init=None, *, optim=None, model=None, causal=None, lora=None, param_dtype=None
) -> ConfigDict:
  """One entry of `config.nets`; None anywhere means what the top of the config says.

  Args:
    init: "workdir:role" or "workdir:role:ema", optionally with "@step", or "wan:" and the name of a
      release, a repository of the hub, a folder or a file, optionally with "#role" for a file of
      several networks: the weights to start from. For a frozen network it is where it lives.
    optim: keys of `optim()` that differ for this role.
    model: keys of `model()` that differ for this role; a frozen network of an earlier run is what
      it is there, but for these.
    causal: whether it is causal. None: a student is what `causal` says, a frozen network what it
      was trained as, any other sees the whole clip.
    lora: keys of `lora()`: train low-rank factors on top of `init`, which is then a frozen network.
    param_dtype: "bfloat16" to keep the matrices of a frozen network, or of the base of factors, in
      half the memory.
  """
  config = ConfigDict()
  config.init = placeholder(str)
  config.init = init
  config.optim = _overrides(_optim(), optim)
  config.model = _overrides(_model(), model)
  config.causal = placeholder(bool)
  config.causal = causal
  config.lora = _overrides(_lora(), lora)
  config.param_dtype = placeholder(str)
  config.param_dtype = param_dtype
  return config


def lora() -> ConfigDict:
  """Low-rank adaptation of one role (vidstep.training.lora)."""
  config = ConfigDict()
  config.rank = placeholder(int)  # None: all weights are trained
  config.alpha = placeholder(float)  # the factors count alpha / rank; None: 1
  config.targets = placeholder(str)  # "attention" (None), "linear", or a regular expression
  return config


def _overrides(defaults, values):
  """A config with the keys of `defaults`, all None but for `values`, so that flags reach each."""
  config = ConfigDict()
  for key in defaults:
    config[key] = placeholder(defaults.get_type(key))
  config.lock().update(values or {})
  return config.unlock()


# Inside `net` the names of these are taken by its arguments.
_model, _optim, _lora = model, optim, lora


# ------------------------------------------------------------------------------------------------
# Other kinds of experiment
# ------------------------------------------------------------------------------------------------


def sweep() -> ConfigDict:
  """What experiments.sweep reads."""
  config = ConfigDict()
  config.networks = ConfigDict()  # name -> "workdir:role:ema"
  config.grid = ()  # dicts: network, and solver / steps / shift / guidance / times, one or several
  config.videos = 256  # per seed; the test split needs 3 times as many clips
  config.seeds = (0,)
  config.features = ("alexnet",)  # "i3d" adds FVD and KVD: slow on a CPU
  config.resamples = 200  # of the bootstrap
  config.latency_runs = 10
  config.within = 0.1  # the answer in words: cheapest setting within this share of the best
  config.compare = ()  # pairs of row names, compared with shared noise
  config.picture = ()  # row names, drawn one above the other
  config.shown = 8  # videos in the picture
  config.strips = 3  # as many of them, the liveliest, as film strips
  return config


def pipeline() -> ConfigDict:
  """What experiments.pipeline reads."""
  config = ConfigDict()
  config.stages = ()  # dicts: name, title, minutes (on two cores), run (words after `python -m`)
  return config


def world() -> ConfigDict:
  """What experiments.world reads."""
  config = ConfigDict()
  config.runs = "runs/world"  # folder of the stages: {runs} in `networks`
  config.pipeline = "configs/doom/causal_rcm.py"  # makes those stages; named where one is missing
  config.networks = ConfigDict()  # name -> "{runs}/stage:role:ema"
  # Dicts: name, network, and solver / steps / shift / guidance / times (None: the run's own);
  # context: "clean", or "last_step" for noisy context; late: frames by which actions come too late;
  # i3d: whether FVD and KVD are measured, of the baselines too if of any row.
  config.rows = ()
  config.clips = 12  # rollouts, each from the context of a held-out episode
  config.frames = (16, 32)  # lengths at which distributions are compared
  config.next_clips = 20  # clips of the training length, for the next frames
  config.long = 100  # frames of a long rollout
  config.long_clips = 4  # so many of the rollouts
  config.batch = 4  # clips generated at a time
  config.seed = 0  # of the noise, the reader of actions and the resampling
  config.resamples = 200  # of the bootstrap
  config.i3d_frames = (16,)  # lengths at which FVD and KVD are measured: slow on a CPU
  config.latency_runs = 10
  config.window = placeholder(int)  # frames that a cache keeps; None: as many as in training
  config.reader_steps = 500  # updates of the inverse-dynamics model
  config.reader_clips = 800  # train clips that it learns from, at most
  config.hold = ConfigDict()  # counterfactuals: what is held, by name of the button
  config.hold.left = "TURN_LEFT"
  config.hold.right = "TURN_RIGHT"
  config.hold.forward = "MOVE_FORWARD"
  config.hold_frames = 10  # frames for which they are held
  config.hold_clips = 8  # so many of the contexts
  config.picture = ()  # row names, drawn under the real frames; the last one's counterfactuals too
  config.shown = 2  # clips in the picture
  return config


def stream() -> ConfigDict:
  """What experiments.stream reads of an architecture with random weights."""
  config = ConfigDict()
  config.model = model()  # channels follow from the codec
  config.model.action_dim = 0
  config.size = (32, 32)  # height and width of a frame in pixels
  config.codec_patch = 4  # side of a patch of the linear codec, in pixels
  config.codec_channels = 24
  config.context = 2  # clean frames that a stream begins with
  config.chunk = 1  # frames made together
  config.window = 16  # frames of the past that are kept
  config.sink = 0
  config.cache_dtype = "float32"
  config.frame_rate = 35.0
  config.history = 8  # snapshots of the cache that a session keeps for rewinding
  return config
