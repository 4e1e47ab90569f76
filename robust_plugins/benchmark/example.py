"""The example that `bench init` writes: it runs offline in a minute, and its comments say what else there is."""

EXAMPLE = """\
# A study: models, data, balls and components, run into a store with one record for each
# (model, sample, ball, component).
#
#   robust-plugins bench check {name}     what is missing, and how long it may take
#   robust-plugins bench run {name}       runs it; run again, it goes on where it stopped
#   robust-plugins bench export study.sqlite records.csv

store = "study.sqlite"                    # relative to this file
seed = 0                                  # of attacks; [0, 1, 2] runs them three times
timeout = 60.0                            # seconds for each sample; inf for any number
keep = ["examples", "inputs", "weights"]  # in the store; [] keeps numbers alone

# What `source` may be: a network of the zoo ("mlp(widths=(64, 64))", see `robust-plugins models list`), an ONNX,
# TorchScript or torch.export file, or "package.module:factory". `weights` reads a checkpoint (a state dict or
# safetensors); `train` trains with a recipe (see `robust-plugins recipes list`), once: the weights are kept beside the
# store. `data = ["digits"]` restricts a model to some data sets.
[[models]]
name = "plain"
source = "mlp(widths=(32,))"
train = {{ epochs = 10 }}

[[models]]
name = "certified"
source = "mlp(widths=(32,))"
train = {{ recipe = "ibp", eps = 0.05, epochs = 10 }}

# `source` is a data set (see `robust-plugins data list`) or an .npz file; without one, the data set of that name.
[[data]]
name = "digits"
samples = 50                              # at most so many test samples; part = "train", first = 100 takes others

# Norms are linf, l2 and l1. The valid range of inputs is the data set's; clip = [0.0, 1.0] gives another.
[[balls]]
norm = "linf"
eps = [0.01, 0.03, 0.1]

# For data that are not images, a box: a radius for each feature, categories, whole numbers, and features that stay.
# [[balls]]
# norm = "box"
# data = ["digits"]                       # of other balls, too: the data sets that they are for
# eps = [0.5, 1.0]                        # what the radii are multiplied by
# radius = 0.1                            # or one for each feature, [5.0, 0.1, inf], with clip = [[...], [...]]
# one_hot = [[2, 3, 4]]                   # features are counted in the flattened input
# integers = [0]
# immutable = [1]

# Attacks and certifiers by their registered names (see `robust-plugins attacks list` and `certifiers list`), with
# parameters where wanted. `name` is what tables call it, `timeout` its own, and `models` and `data` restrict it.
[[components]]
use = "rp:pgd(steps=40)"
name = "PGD"
# target = "least_likely"                 # or "random": a class to be reached

[[components]]
use = "interval:ibp"

[[components]]
use = "interval:crown"

# [[components]]
# use = "art:auto"                        # pip install "robust_plugins[art]"

# [[components]]
# use = "interval:branch-and-bound"
# timeout = 10.0

# Attacks and certifiers of explanations, here of the gradient of the logit of the true class.
[[explanations]]
use = "interval:relaxed"
of = "logit"                              # or "margin", "loss"
delta = 0.5                               # of certifiers: the width allowed to each feature
# threshold = 0.5                         # of attacks: the relative deviation that counts as success

# What poisoned training data can do: one training, bounded and attacked, asked at the samples of a data set.
# [[poisoning]]
# name = "a few labels"
# model = "plain"                         # its architecture; it is trained here
# data = "digits"
# budget = "labels=2"                     # or "points=5,eps=0.01", "removal(k=2)"
# epochs = 1
# batch_size = 200
# lr = 0.1
# attacks = ["poison:random(count=5)"]

[run]
backend = "threading"                     # or "loky"; "dask" and "ray" with the address of a cluster
jobs = 1                                  # batches at once; -1 for one per core
batch_size = 50                           # samples at once; the random draws of attacks depend on it
# isolate = false                         # without processes of their own: starts sooner, but a crash is yours
# threads = 1                             # of each process
# device = "cuda"                         # one batch at a time on each
"""
