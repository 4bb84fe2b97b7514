# %% [markdown]
# # Route tokens to experts, heads, depths and widths
#
# **What you will do.** Give every token its own way through a network. First among experts: you watch them
# collapse, and mend that in three ways. Then among heads, among depths, and at last among widths, where one
# set of weights serves many sizes of model.
#
# **What you will learn.** What a router is and where its gradient comes from. How tokens are sent to experts
# and back. Why routing collapses; a balance loss, a bias without a loss, and experts that choose, with the
# leak that this opens. Mixtures of heads; halting; nested widths.
#
# **What you need.** Lessons `02_build_attention` and `03_read_feed_forward`.
#
# **Variants.** `smoe_topk`, `moe_aux_losses`, `deepseek_moe`, `expert_choice_moe`, `moh`,
# `universal_transformer`, `act_halting`, `matformer_ffn`

# %%
import math

import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf import ops
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.ffn.matformer_ffn import sampled_width
from minitf.ffn.moe_aux_losses import balance_loss, z_loss
from minitf.nn import dispatch
from minitf.testing import NOTEBOOK, check_variant, exercise
from minitf.viz import Picture
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
np.set_printoptions(precision=3, suppress=True, floatmode="fixed")

# %% [markdown]
# ## 1. One network for all, or one for each kind?
#
# A feed-forward layer runs all its weights on every token. But tokens come in kinds: a verb needs other
# weights than a comma. Here is a world with six kinds. Tokens of a kind lie around one centre, and each kind
# has a linear map of its own from token to target. Nobody tells the layer the kind. (In the picture of two
# axes two kinds overlap; in all 16 dimensions they do not.)

# %%
D, KINDS = 16, 6
world = np.random.default_rng(0)
centres = 2 * world.standard_normal((KINDS, D)) + 1
maps = world.standard_normal((KINDS, D, D)) / 4


def draw(rng, *shape):
    """Tokens (..., D), their targets (..., D), and their kinds (...)."""
    kind = rng.integers(KINDS, size=shape)
    x = centres[kind] + 0.7 * rng.standard_normal((*shape, D))
    y = np.einsum("...d,...de->...e", x, maps[kind])
    return mt.tensor(x.astype("float32")), y.astype("float32"), kind


test_x, test_y, test_kind = draw(np.random.default_rng(99), 16, 128)
flat = test_x.numpy().reshape(-1, D) - test_x.numpy().mean((0, 1))
plane = flat @ np.linalg.svd(flat, full_matrices=False)[2][:2].T
picture = Picture(4.2, 2.8)
axes = picture.subplots()
axes.scatter(*plane.T, c=test_kind.reshape(-1), cmap="Dark2", vmax=7, s=3)
axes.set(xlabel="first principal axis", ylabel="second", title="2,048 tokens of six kinds")
picture

# %% [markdown]
# A **mixture of experts** holds $E$ small networks and a *router*, a matrix $W_r$. For a token $x$ it keeps
# the set $S$ of the $k$ experts with the largest scores $l = x W_r$, and adds up what they say:
#
# $$y = \sum_{e \in S} g_e \, \mathrm{FFN}_e(x) \qquad\qquad g_e = \frac{e^{l_e}}{\sum_{j \in S} e^{l_j}}$$
#
# The numbers $g$ are the *gates*. With this softmax over $S$ alone they sum to one (they are *renormalised*).
#
# ### Exercise 1: the gate
#
# Write it with NumPy, for many tokens at once. The experts come best first.


# %%
def gate(scores, k):
    """The k best experts (n, k), best first, and their gates (n, k), from scores (n, E)."""
    # BEGIN SOLUTION
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    top = np.take_along_axis(scores, chosen, axis=1)
    e = np.exp(top - top[:, :1])
    return chosen, e / e.sum(axis=1, keepdims=True)
    # END SOLUTION


# %% tags=["mistake"]
# Softmax over all experts, not renormalised.
def gate(scores, k):
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return chosen, np.take_along_axis(e / e.sum(axis=1, keepdims=True), chosen, axis=1)


# %% tags=["mistake"]
# Takes the worst experts.
def gate(scores, k):
    chosen = np.argsort(scores, axis=1, kind="stable")[:, :k]
    e = np.exp(np.take_along_axis(scores, chosen, axis=1))
    return chosen, e / e.sum(axis=1, keepdims=True)


# %%
@exercise("gate")
def check_gate():
    answer = gate(np.log([[1.0, 6.0, 3.0]]), 2)
    assert answer is not None, "gate gives nothing back yet: return the experts and their gates"
    words = "one token with scores log 1, log 6, log 3 and k = 2"
    chosen, gates = map(np.asarray, answer)
    assert chosen.tolist() == [[1, 2]], f"{words}: the experts are [[1, 2]], not {chosen.tolist()}"
    error = np.abs(gates - [[2 / 3, 1 / 3]]).max()
    assert error <= 1e-12, f"{words}: the gates are 0.667 and 0.333, not {gates.round(3).tolist()}"
    # BEGIN HIDDEN TESTS
    scores = 500 * np.random.default_rng(1).standard_normal((9, 5))
    chosen, gates = gate(scores, 3)
    top, right = ops.topk(mt.tensor(scores), 3)
    assert np.array_equal(chosen, right.numpy()), "nine tokens, large scores: other experts than the library"
    error = np.abs(gates - ops.softmax(top).numpy()).max()
    assert error <= 1e-9, f"nine tokens with scores near 500: the gates are off by {error:.2g}"
    # END HIDDEN TESTS


# %% [markdown]
# Choosing has no slope, so the router learns through the gates alone. Now take $k = 1$. What is the
# renormalised gate of a single expert, and what does the router learn? Predict before you run.

# %%
rng = np.random.default_rng(0)
x, y, _ = draw(rng, 128)
for renorm in (True, False):
    layer = mt.build("smoe_topk", dim=D, experts=6, k=1, hidden=16, renorm=renorm)
    ops.square(layer(x) - y).mean().backward()
    slope = np.abs(layer.router.weight.grad.numpy()).max()
    print(f"k = 1, renormalised: {renorm!s:5}   largest gradient of the router: {slope:.1g}")

# %% [markdown]
# One gate, renormalised, is always 1: the router never learns. So for $k = 1$ the gate is the softmax over
# *all* experts (`renorm=False`), and this is what we use from here on.
#
# ## 2. Send them off and bring them back
#
# Written as above, every expert could run on every token, most of it for nothing. *Dispatch* does better.
# List all pairs (token, slot), sort them by expert, give each expert its tokens as one batch, and add what
# comes back to the rows of the tokens.
#
# ### Exercise 2: dispatch
#
# Each expert is called at most once. A token with two experts occurs twice among the rows, so adding needs
# care: `y[rows] += parts` keeps only one of two additions to the same row. Ask `np.add.at`.


# %%
def send(x, chosen, gates, experts):
    """y (n, D) = the sum over slots s of gates[:, s] * experts[chosen[:, s]](x).

    x: (n, D), chosen and gates: (n, k), experts: functions from (m, D) to (m, D).
    """
    # BEGIN SOLUTION
    pairs = np.argsort(chosen.reshape(-1), kind="stable")
    rows = pairs // chosen.shape[1]
    ends = np.cumsum(np.bincount(chosen.reshape(-1), minlength=len(experts)))
    parts = [f(x[mine]) for f, mine in zip(experts, np.split(rows, ends[:-1])) if len(mine)]
    y = np.zeros_like(x)
    np.add.at(y, rows, gates.reshape(-1)[pairs][:, None] * np.concatenate(parts))
    return y
    # END SOLUTION


# %% tags=["mistake"]
# Loses one of two additions to the same row.
def send(x, chosen, gates, experts):
    pairs = np.argsort(chosen.reshape(-1), kind="stable")
    rows = pairs // chosen.shape[1]
    ends = np.cumsum(np.bincount(chosen.reshape(-1), minlength=len(experts)))
    parts = [f(x[mine]) for f, mine in zip(experts, np.split(rows, ends[:-1])) if len(mine)]
    y = np.zeros_like(x)
    y[rows] += gates.reshape(-1)[pairs][:, None] * np.concatenate(parts)
    return y


# %% tags=["mistake"]
# Leaves the gates in the order of the tokens, while the rows are in the order of the experts.
def send(x, chosen, gates, experts):
    pairs = np.argsort(chosen.reshape(-1), kind="stable")
    rows = pairs // chosen.shape[1]
    ends = np.cumsum(np.bincount(chosen.reshape(-1), minlength=len(experts)))
    parts = [f(x[mine]) for f, mine in zip(experts, np.split(rows, ends[:-1])) if len(mine)]
    y = np.zeros_like(x)
    np.add.at(y, rows, gates.reshape(-1)[:, None] * np.concatenate(parts))
    return y


# %% tags=["mistake"]
# Right, but runs every expert on every token.
def send(x, chosen, gates, experts):
    weight = np.zeros((len(x), len(experts)))
    np.put_along_axis(weight, chosen, gates, axis=1)
    return sum(weight[:, e : e + 1] * f(x) for e, f in enumerate(experts))


# %%
@exercise("send")
def check_send():
    work = []

    def expert(factor):
        def f(rows):
            work.append(len(rows))
            return factor * rows

        return f

    def trial(x, chosen, gates, factors, words):
        work.clear()
        y = send(x, chosen, gates, [expert(factor) for factor in factors])
        assert y is not None, "send gives nothing back yet: return y with the shape of x"
        right = (gates[..., None] * np.array(factors)[chosen][..., None] * x[:, None]).sum(axis=1)
        assert np.shape(y) == x.shape, f"{words}: y has shape {np.shape(y)}, expected {x.shape}"
        error = np.abs(y - right).max()
        assert error <= 1e-12, f"{words}: y is {np.ravel(y)[:3]}, expected {right.ravel()[:3]}"
        assert sum(work) == chosen.size, f"{words}: experts saw {sum(work)} rows, {chosen.size} are enough"
        assert len(work) <= len(factors), f"{words}: {len(work)} calls of {len(factors)} experts"

    trial(np.ones((1, 1)), np.array([[0]]), np.ones((1, 1)), [2.0, 3.0], "one token for expert 0 of two")
    pair, gates = np.array([[1, 0], [0, 1]]), np.array([[0.75, 0.25], [0.5, 0.5]])
    trial(np.ones((2, 1)), pair, gates, [1.0, 10.0], "two tokens, both for both experts")
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(2)
    chosen = np.argsort(rng.random((40, 7)), axis=1)[:, :3]
    trial(rng.standard_normal((40, 3)), chosen, rng.random((40, 3)), [*range(1, 8)], "40 tokens, k = 3")
    # END HIDDEN TESTS


# %% [markdown]
# Does it pay? We train a small dense layer (width 16), a wide one (width 96) and a mixture of six experts of
# width 16, each token in one of them. The error is relative: 1 is that of always answering zero.


# %%
def relative(prediction, y):
    return float(((prediction.numpy() - y) ** 2).mean() / (y**2).mean())


def learn(layer, seed=0, extra=None, after=None, steps=200):
    """Trains the layer; gives its error on new tokens and the load of its experts (steps, E)."""
    rng, loads = np.random.default_rng(100 + seed), []
    optimizer = mt.train.AdamW(layer.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        x, y, _ = draw(rng, 128)
        if hasattr(layer, "route"):
            loads.append(np.bincount(layer.route(x)[0].ravel(), minlength=6) / 128)
        loss = ops.square(layer(x) - y).mean() + (extra(layer, x) if extra else 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after:
            after(layer, 128 * loads[-1])
    return relative(layer(test_x), test_y), np.array(loads)


def experts(balance, seed=0):
    return mt.build("smoe_topk", dim=D, experts=6, k=1, hidden=16, renorm=False, balance=balance, seed=seed)


def add_loss(layer, x):
    return layer.auxiliary_loss(x)


first = {"dense, width 16": mt.build("glu_ffn", dim=D, hidden=16)}
first["dense, width 96"] = mt.build("glu_ffn", dim=D, hidden=96)
first["6 experts of 16"] = experts(0.3)
for name, layer in first.items():
    error, _ = learn(layer, extra=add_loss if "experts" in name else None)
    with mt.profile() as p:
        layer(test_x)
    per_token = p.flops / test_x[..., 0].size
    first[name] = error, per_token
    print(f"{name}: error {error:.3f}, {layer.count_parameters():5} parameters, {per_token:5.0f} operations")

# %% [markdown]
# The mixture has the parameters of the wide layer, nearly at the price of the small one: parameters and
# operations come apart. That is the whole idea. Its error is far below that of the small layer, and not yet
# that of the wide one: each expert has seen only a part of the tokens.
#
# ## 3. Collapse, and two ways to balance
#
# In the last cell we added a *balance loss*. What if we do not? An expert that is chosen learns, gets better
# and is chosen more. One that is never chosen never learns: nothing reaches it. Predict how many of the six
# experts survive.

# %%
runs = {}
for seed in range(3):
    runs["nothing", seed] = layer = experts(0.0, seed)
    runs["nothing", seed] = layer, *learn(layer, seed)
for seed in range(3):
    _, error, loads = runs["nothing", seed]
    print(f"seed {seed}: load at the end {loads[-20:].mean(axis=0)}, error {error:.3f}")

# %% [markdown]
# Some experts starve, and others must do the work of several kinds, though all six are equally frequent. One
# thing in our data helps: all tokens share a common part, the `+ 1` of the centres, which favours the same
# experts for all. Without it fewer starve. A common remedy punishes an uneven load. With
#
# - $f_e$, the share of tokens that were sent to expert $e$ (counted, so it has no slope), and
# - $P_e$, the mean over tokens of the probability $\mathrm{softmax}(l)_e$,
#
# $$L = E \sum_e f_e P_e$$
#
# If choice and probability agree, $f = P$, then $L$ is least for a uniform load, where it is 1; if all goes
# to one expert it is $E$. Its gradient by the probability of expert $e$ for one of $n$ tokens is $E f_e / n$:
# the more loaded an expert, the harder it is pushed down.
#
# ### Exercise 3: the balance loss
#
# Here each token has one expert, and `chosen` (n,) names it.


# %%
def balance(p, chosen):
    """The balance loss, a number, from probabilities p (n, E) and the chosen experts (n,)."""
    # BEGIN SOLUTION
    n, count = p.shape
    f = np.bincount(chosen, minlength=count) / n
    return count * (f * p.mean(axis=0)).sum()
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the factor E.
def balance(p, chosen):
    f = np.bincount(chosen, minlength=p.shape[1]) / len(p)
    return (f * p.mean(axis=0)).sum()


# %% tags=["mistake"]
# Multiplies each token's choice with its own probability, before the means.
def balance(p, chosen):
    return p.shape[1] * np.take_along_axis(p, chosen[:, None], axis=1).mean()


# %%
@exercise("balance")
def check_balance():
    sure = np.eye(2)
    even, all_to_one = balance(sure, np.array([0, 1])), balance(sure[[0, 0]], np.array([0, 0]))
    assert even is not None, "balance gives nothing back yet: return one number"
    assert abs(even - 1) <= 1e-12, f"2 tokens, sure of experts 0 and 1: L is 1, not {even:.4g}"
    assert abs(all_to_one - 2) <= 1e-12, f"2 tokens, both sure of expert 0: L is 2, not {all_to_one:.4g}"
    # BEGIN HIDDEN TESTS
    p = ops.softmax(np.random.default_rng(3).standard_normal((50, 5)))
    chosen = p.argmax(axis=1)
    right = balance_loss(mt.tensor(p), chosen[:, None] == np.arange(5)).item()
    error = abs(balance(p, chosen) - right)
    assert error <= 1e-9, f"50 tokens, 5 experts: L is {right:.4f}, not {balance(p, chosen):.4f}"
    # END HIDDEN TESTS


# %% [markdown]
# There is a way without any loss. Give each expert a bias $b_e$ that is added to the scores for *choosing*,
# and never enters the gates. After each step, raise it a little where the load was below the mean, and lower
# it where it was above: $b_e \leftarrow b_e + \gamma\, \mathrm{sign}(\bar c - c_e)$, with $c_e$ the number of
# tokens of expert $e$. No gradient is disturbed. We train with both remedies, three seeds each. The weight of
# the loss is 0.3, the best of four that we tried; once we take 0.01, which the papers use.


# %%
def move_bias(layer, counts):
    layer.update_bias(counts)


for seed in range(3):
    for weight in (0.3, 0.01) if seed == 0 else (0.3,):
        layer = experts(weight, seed)
        runs[f"loss x {weight}", seed] = layer, *learn(layer, seed, extra=add_loss)
    layer = mt.build(
        "deepseek_moe", dim=D, experts=6, k=1, shared=0, hidden=16, score="softmax", gamma=0.01, seed=seed
    )
    runs["bias", seed] = layer, *learn(layer, seed, after=move_bias)

ways = ["nothing", "loss x 0.01", "loss x 0.3", "bias"]
alive, worst, errors = {}, {}, {}
for way in ways:
    mine = [run for (name, _), run in runs.items() if name == way]
    late = [loads[-20:].mean(axis=0) for _, _, loads in mine]
    alive[way] = np.array([(load > 0.02).sum() for load in late])
    worst[way] = np.array([6 * load.max() - 1 for load in late])
    errors[way] = np.array([error for _, error, _ in mine])
    gates = np.array([run[0].route(test_x.reshape((-1, D)))[1].mean().item() for run in mine])
    print(f"{way:11}  alive {alive[way]}  overload {worst[way]}  error {errors[way]}  gate {gates}")

# %%
picture = Picture(8, 2.6)
shades = ["#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00"]
for axes, way in zip(picture.subplots(1, 4, sharey=True), ways):
    loads = runs[way, 0][2].reshape(-1, 10, 6).mean(axis=1)
    axes.stackplot(10 * np.arange(len(loads)), loads.T, colors=shades)
    axes.set(title=way, xlabel="step", ylim=(0, 1), xlim=(0, 190))
picture.axes[0].set_ylabel("share of tokens")
picture.suptitle("load of the six experts while they learn, seed 0", fontsize=10)
picture

# %% [markdown]
# *Overload* is how far the busiest expert lies above the mean load, as a share of the mean: 0 is perfect, and
# $E - 1$ is a full collapse. The weight of the papers is too weak for 200 steps; their runs take hundreds of
# times as many. Do experts find the kinds? Row: a kind. Column: the share of its tokens that an expert takes.


# %%
def who_gets_whom(layer):
    """Shares (KINDS, E), experts sorted by the kind that they see most."""
    chosen = layer.route(test_x.reshape((-1, D)))[0][:, 0]
    table = np.zeros((KINDS, 6))
    np.add.at(table, (test_kind.reshape(-1), chosen), 1)
    table /= table.sum(axis=1, keepdims=True)
    return table[:, np.lexsort((np.arange(6), np.where(table.max(axis=0) > 0.1, table.argmax(axis=0), 9)))]


def show_shares(axes, table, title, rows, columns):
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1.3)
    for (i, j), share in np.ndenumerate(table):
        color = "white" if share > 0.7 else "black"
        word = f"{share:.1f}" if share >= 0.05 else ""
        axes.text(j, i, word, ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel=columns, ylabel=rows, xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


picture = Picture(8, 2.7)
for axes, way in zip(picture.subplots(1, 3), ["nothing", "loss x 0.3", "bias"]):
    show_shares(axes, who_gets_whom(runs[way, 0][0]), way, "kind", "expert")
picture

# %% [markdown]
# An even load is not yet one expert for each kind: two kinds can be split between two experts, and every
# expert is equally busy. Compare *overload* and *error* once more: the bias balances as well as the loss, and
# yet the error gains with one seed only. A likely reason: the bias moves the choice, not the gate. An expert
# that was chosen for its bias speaks with a small gate, and learns slowly. Look at the mean gates above.
#
# ### A loss for the size of scores
#
# Softmax does not change when all scores grow by one number, so nothing holds them near zero. In low
# precision that hurts: large numbers have coarse steps. The *z loss*, the mean of
# $(\log \sum_e e^{l_e})^2$, keeps them small. Here are the gates of scores 0, 0.3 and 0.6 in 16 bits.

# %%
for shift in (0, 100, 1000):
    scores = (np.array([[0.0, 0.3, 0.6]]) + shift).astype(np.float16)
    gates = ops.softmax(scores.astype(np.float64))[0]
    z = z_loss(mt.tensor(scores.astype(np.float64))).item()
    print(f"scores + {shift:4}: gates {gates}, z loss {z:,.0f}")

# %% [markdown]
# ## 4. Experts that choose: balanced, but not causal
#
# Turn the choice around. Each expert takes the $C = cn/E$ tokens (rounded up) of a group that score highest
# for it. Every expert is exactly full, without a loss and without a bias. A token may get several experts, or
# none.

# %%
chooser = mt.build("expert_choice_moe", dim=D, experts=6, capacity=2.0, hidden=16)
rng = np.random.default_rng(100)
optimizer = mt.train.AdamW(chooser.parameters(), lr=0.01, weight_decay=0.0)
for _ in range(200):
    x, y, _ = draw(rng, 128)
    loss = ops.square(chooser(x) - y).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
taken = np.zeros(test_kind.shape, int)
for group, experts_of_group in enumerate(chooser.choose(test_x)[1]):
    np.add.at(taken[group], experts_of_group.reshape(-1), 1)
chooser_error = relative(chooser(test_x), test_y)
print(f"error {chooser_error:.3f}; each expert takes {chooser.choose(test_x)[1].shape[-1]} of 128 tokens")
print("share of tokens with 0, 1, 2, ... experts:", np.bincount(taken.reshape(-1)) / taken.size)

# %% [markdown]
# In a language model token 3 must not depend on token 7. With expert choice it does: token 7 may take the
# last place of an expert. The usual test, the gradient, cannot see it, because choosing has no slope. A check
# that changes tokens can.

# %%
x = test_x[:1, :12]
slopes = mt.grad(lambda x: ops.square(chooser(x)[:, :11]).sum())(x).numpy()[0, 11]
print("gradient of the first 11 outputs by token 11:", np.abs(slopes).max())
verdicts = {}
for name in ("smoe_topk", "expert_choice_moe"):
    report = check_variant(
        name, claims=("causal_to_rounding",), checks=["causal"], examples=NOTEBOOK, on_fail=None
    )
    verdicts[name] = report[0]
    print(f"{name}: causal, up to rounding: {report[0].status}")
print("in words:", verdicts["expert_choice_moe"].reason)

# %% [markdown]
# How often does it happen in the trained layers? We exchange the last of 12 tokens, 200 times, and count
# which outputs move.

# %%
moved = {"experts choose": np.zeros(12), "tokens choose": np.zeros(12)}
for trial in range(200):
    x, _, _ = draw(np.random.default_rng(trial), 2, 12)
    x = x.numpy()
    x[1, :11] = x[0, :11]
    for name, layer in (("experts choose", chooser), ("tokens choose", runs["bias", 0][0])):
        y = layer(mt.tensor(x)).numpy()
        moved[name] += np.abs(y[0] - y[1]).max(axis=-1) > 1e-4
picture = Picture(6, 2.4)
axes = picture.subplots()
for side, color, name in ((-0.2, ORANGE, "experts choose"), (0.2, BLUE, "tokens choose")):
    axes.bar(np.arange(12) + side, moved[name] / 200, width=0.4, color=color, label=name)
axes.set(xlabel="token", ylabel="share of trials", xticks=range(12), title="outputs that move with token 11")
axes.legend(fontsize=8, loc="upper center")
leak = moved["experts choose"][:11].mean() / 200
picture

# %% [markdown]
# So expert choice suits encoders and images, where all tokens are there at once.
#
# ## 5. A mixture of heads
#
# Heads of attention can be experts too: every token picks $K$ of $H$ heads and weighs them. Our task: 16
# tokens of four kinds. A token must answer with the mean of the values of the *next* kind, passed through a
# map of its own kind. (The task is made for routing: plain heads say the same map to everybody.)

# %%
head_maps = np.random.default_rng(5).standard_normal((4, 8, 8)) / math.sqrt(2)


def draw_heads(rng, n=24):
    kind = rng.permuted(np.tile(np.arange(4), (n, 4)), axis=1)
    values, one = rng.standard_normal((n, 16, 8)), np.eye(4)[kind]
    means = np.einsum("nik,niw->nkw", one, values) / 4
    wanted = means[np.arange(n)[:, None], (kind + 1) % 4]
    x = np.concatenate([2 * one, values, np.zeros((n, 16, 20))], axis=-1)
    y = np.einsum("niw,niwu->niu", wanted, head_maps[kind])
    return mt.tensor(x.astype("float32")), y.astype("float32"), kind


def learn_heads(layer, steps=250):
    rng = np.random.default_rng(0)
    optimizer = mt.train.AdamW(layer.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        x, y, _ = draw_heads(rng)
        loss = ops.square(layer(x)[..., -8:] - y).mean()
        if hasattr(layer, "auxiliary_loss"):
            loss = loss + layer.auxiliary_loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y, kind = draw_heads(np.random.default_rng(99), 200)
    return relative(layer(x)[..., -8:], y), x, kind


plain = mt.build("softmax_attention", dim=32, heads=8, causal=False)
mixed = mt.build("moh", dim=32, heads=8, shared=0, routed=2, causal=False)
head_errors = {"all 8 heads": learn_heads(plain)[0]}
head_errors["2 of 8 heads"], x, kind = learn_heads(mixed)
for name, error in head_errors.items():
    print(f"{name} for each token: error {error:.3f}")

# %%
weights = mixed.head_weights(x).numpy()
table = np.stack([weights[kind == j].mean(axis=0) for j in range(4)]) / 2
picture = Picture(5, 2.4)
axes = picture.subplots()
show_shares(axes, table, "share of each head in the answer", "kind of token", "head")
axes.set(xticks=range(8), yticks=range(4))
picture

# %% [markdown]
# ## 6. A mixture of depths: when to stop
#
# A *universal transformer* applies one block $T$ times: depth without new weights. How many times is enough?
# Here is a task where it can be read off. A row of blanks, with a letter here and there. Every token must say
# the last letter at or before it. We let a token see only its left neighbour, so news travels one place in
# each step. The *distance* is that of a token to its letter, and at most 4.

# %%
SPAN = 16
near = np.tri(SPAN, dtype=bool) & ~np.tri(SPAN, k=-2, dtype=bool)


def draw_letters(rng, n=16):
    """Input (n, SPAN, 5) one-hot with blanks, distances (n, SPAN), answers (n, SPAN)."""
    letter, distance = rng.integers(4, size=(n, SPAN)), np.zeros((n, SPAN), int)
    start = rng.random((n, SPAN)) < 0.2
    for i in range(1, SPAN):
        distance[:, i] = np.where(start[:, i] | (distance[:, i - 1] == 4), 0, distance[:, i - 1] + 1)
    shown = np.eye(5, dtype="float32")[np.where(distance == 0, letter, 4)]
    return shown, distance, np.take_along_axis(letter, np.arange(SPAN) - distance, axis=1)


class Reader(mt.nn.Module):
    """A block between a linear layer and one that names letters."""

    def __init__(self, name, **options):
        super().__init__()
        self.first = mt.nn.Linear(5, 16, False, 1)
        ffn = mt.build("relu_ffn", dim=16, hidden=32)
        self.block = mt.build(name, dim=16, heads=2, layout="pre", ffn=ffn, **options)
        self.last = mt.nn.Linear(16, 4, True, 2)

    def forward(self, shown):
        """Scores of the letters, and what the halting says, if there is any."""
        x, found = 2 * self.first(mt.tensor(shown)), None
        if hasattr(self.block, "ponder"):
            found = self.block.ponder(x, mask=near)
        return self.last(self.block(x, mask=near) if found is None else found.out), found


def learn_letters(reader, steps=130):
    """Accuracy for distances 0..4, and the mean number of steps for each."""
    rng = np.random.default_rng(0)
    optimizer = mt.train.AdamW(reader.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        shown, _, answer = draw_letters(rng)
        scores, found = reader(shown)
        loss = -ops.take_along_axis(ops.log_softmax(scores), answer[..., None], axis=-1).mean()
        if found:
            loss = loss + reader.block.loss_weight * (found.steps + found.remainders).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shown, distance, answer = draw_letters(np.random.default_rng(99), 300)
    scores, found = reader(shown)
    right = scores.numpy().argmax(axis=-1) == answer
    taken = found.steps.numpy() if found else np.full(right.shape, reader.block.steps)
    return [np.array([values[distance == d].mean() for d in range(5)]) for values in (right, taken)]


depths = {}
for steps in (1, 3, 5):
    depths[steps], _ = learn_letters(Reader("universal_transformer", steps=steps))
    print(f"{steps} steps: accuracy by distance {depths[steps]}")

# %% [markdown]
# $T$ steps reach $T$ places, and beyond that the model guesses: one in four. So deep enough for the farthest
# token is too deep for all others. With **halting** each token carries a sum of probabilities
# $p_t = \sigma(w \cdot u_t + b)$ over the steps $t$, from its state $u_t$. When the sum comes near one, the
# token stops. Its neighbours may still look at it. The loss gets a *price* times (steps + remainder), where
# the remainder is what was missing to one before the last step: it gives the number of steps a slope.
#
# The published code starts with $b = 1$: as $\sigma(1) = 0.73$, a token first stops after about two steps. We
# also start patiently, with $b = -2$. Predict the number of steps for each distance.

# %%
halting = {}
for start in (1, -2):
    reader = Reader("act_halting", max_steps=6, loss_weight=0.1)
    reader.block.halt.bias.data[:] = start
    halting[start] = learn_letters(reader)
    print(f"b starts at {start:2}: accuracy {halting[start][0]}, steps {halting[start][1]}")
picture = Picture(8, 2.6)
left, right = picture.subplots(1, 2)
for color, (start, (accuracy, taken)) in zip((ORANGE, BLUE), halting.items()):
    left.plot(range(5), taken, "o-", color=color, label=f"b starts at {start}")
    right.plot(range(5), accuracy, "o-", color=color, label=f"b starts at {start}")
left.plot(range(5), [1, 1, 2, 3, 4], "--", color=GREY, label="the least that can do")
right.plot(range(5), depths[3], "--", color=GREY, label="always 3 steps")
left.set(xlabel="distance to the letter", ylabel="steps taken", xticks=range(5), ylim=(0, 6.4))
right.set(xlabel="distance to the letter", ylabel="accuracy", xticks=range(5), ylim=(0, 1.1))
for axes in (left, right):
    axes.legend(fontsize=7)
picture

# %% [markdown]
# Started patiently, a token waits until the news has arrived, takes about one step more, and stops: the far
# ones late, the near ones early. Started with $b = 1$ it stops before there is any news, and so never sees
# that waiting would pay. This is the collapse of section 3 again: what is not tried is not learned. (One seed
# each. Other seeds can end otherwise.)
#
# ## 7. Many widths in one set of weights
#
# The last choice is made by nobody in the network, but by whoever runs it: today the large model, tomorrow,
# on a telephone, the small one. Can one set of weights be both? Let the first $m$ of $F$ neurons be a network
# of their own:
#
# $$F_m(x) = a(x W_1[:, :m] + b_1[:m])\; W_2[:m] + b_2$$
#
# ### Exercise 4: a network inside a network
#
# `act` is any activation $a$. Beware: setting the input of unused neurons to zero is the same only if
# $a(0) = 0$, and the sigmoid has $a(0) = 1/2$.


# %%
def nested(x, w1, b1, w2, b2, m, act):
    """F_m(x) (n, D) from x (n, D), w1 (D, F), b1 (F,), w2 (F, D), b2 (D,) and a width m."""
    # BEGIN SOLUTION
    return act(x @ w1[:, :m] + b1[:m]) @ w2[:m] + b2
    # END SOLUTION


# %% tags=["mistake"]
# Hides the input of the other neurons, which the sigmoid does not send to zero.
def nested(x, w1, b1, w2, b2, m, act):
    return act((x @ w1 + b1) * (np.arange(len(b1)) < m)) @ w2 + b2


# %% tags=["mistake"]
# Scales the bias with the width.
def nested(x, w1, b1, w2, b2, m, act):
    return act(x @ w1[:, :m] + b1[:m]) @ w2[:m] + b2 * m / len(b1)


# %%
@exercise("nested")
def check_nested():
    one, two = np.ones((1, 1)), np.ones((1, 2))
    answer = nested(2 * one, 3 * two, 0 * two[0], two.T, np.array([10.0]), 1, lambda v: v)
    assert answer is not None, "nested gives nothing back yet: return (n, D)"
    assert np.shape(answer) == (1, 1), f"one token of width 1 gives shape (1, 1), not {np.shape(answer)}"
    assert answer[0, 0] == 16, f"first of 2 neurons, 2 x 3 x 1 + 10: the answer is 16, not {answer[0, 0]:g}"
    layer = mt.build("matformer_ffn", dim=3, hidden=8, act="sigmoid", dtype="float64", seed=1)
    x = np.random.default_rng(4).standard_normal((5, 3))
    weights = [p.data for p in (layer.w1.weight, layer.w1.bias, layer.w2.weight, layer.w2.bias)]
    for m in (1, 3, 8):
        answer = nested(x, *weights, m, lambda v: 1 / (1 + np.exp(-v)))
        error = np.abs(answer - layer(mt.tensor(x), m).numpy()).max()
        assert error <= 1e-12, f"8 neurons with a sigmoid, m = {m}: differs from the library by {error:.2g}"


# %% [markdown]
# A plain network cut to its first neurons: how good is it? The neurons of a plain network have no order, so
# do not expect much. *Nested* training draws a width at every step and trains that part. We compare both with
# networks that were trained at one width each, on the task of section 1.

# %%
HIDDEN, SEEN = 128, (16, 32, 64, 128)


def learn_width(layer, sample=False, steps=400):
    rng = np.random.default_rng(100)
    optimizer = mt.train.AdamW(layer.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        x, y, _ = draw(rng, 128)
        prediction = layer(x, sampled_width(layer.widths, rng)) if sample else layer(x)
        loss = ops.square(prediction - y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer


cut = learn_width(mt.build("matformer_ffn", dim=D, hidden=HIDDEN))
many = learn_width(mt.build("matformer_ffn", dim=D, hidden=HIDDEN), sample=True)
widths = [8, 12, 16, 24, 32, 48, 64, 96, 128]
by_width = {
    name: {m: relative(layer(test_x, m), test_y) for m in widths}
    for name, layer in (("cut", cut), ("nested", many))
}
by_width["own"] = {
    m: relative(learn_width(mt.build("gelu_ffn", dim=D, hidden=m))(test_x), test_y) for m in SEEN[:-1]
}
by_width["own"][HIDDEN] = by_width["cut"][HIDDEN]

picture = Picture(6, 3)
axes = picture.subplots()
labels = {
    "cut": (ORANGE, "^-", "plain, cut"),
    "nested": (BLUE, "-", "nested"),
    "own": (GREEN, "s--", "trained at this width"),
}
for name, (color, style, label) in labels.items():
    axes.loglog(*zip(*by_width[name].items()), style, color=color, label=label, markersize=5)
axes.loglog(SEEN, [by_width["nested"][m] for m in SEEN], "o", color=BLUE, label="widths it was trained at")
axes.set(xlabel="width m", ylabel="error", xticks=widths, xticklabels=widths)
axes.minorticks_off()
axes.legend(fontsize=8)
picture

# %% [markdown]
# The cut network is lost as soon as neurons are missing. The nested one loses little by little. Widths
# between the dots were never trained, and land close to their neighbours; widths below the smallest dot do
# not. The nested network pays at the larger widths, most at the full one, which has a quarter of the steps;
# in this small world that price is large.
#
# ## 8. Your own mixture
#
# Now build one that the library does not have. A *shared* network runs on every token. Each token also gets
# its two best experts, with gates that do not compete: $g_e = \sigma(l_e)$, each between 0 and 1, not
# renormalised. So a token that needs no expert can turn both down.
#
# $$y = \mathrm{FFN}_{\mathrm{shared}}(x) + \sum_{e \in S} \sigma(l_e)\, \mathrm{FFN}_e(x)$$
#
# ### Exercise 5: a mixture that may say no
#
# Write `forward`. Of use: `ops.topk(scores, k)` gives values and places, and
# `dispatch(tokens, chosen, gates, experts)` is the library's version of exercise 2; `chosen` is a plain array
# (`places.data`). Tokens come as (..., D) and `dispatch` wants (n, D).


# %%
class Optional(mt.nn.Module):
    """A shared network and two of four experts with gates of their own. (..., D) -> (..., D)."""

    def __init__(self, dim, *, seed=0, dtype="float32"):
        super().__init__()
        rng = mt.nn.init.generator(seed)
        self.router = mt.nn.Linear(dim, 4, False, rng, dtype=dtype)
        self.shared = GELUFFN(dim, hidden=dim, seed=rng, dtype=dtype)
        self.experts = [GELUFFN(dim, hidden=dim, seed=rng, dtype=dtype) for _ in range(4)]

    def forward(self, x):
        # BEGIN SOLUTION
        tokens = x.reshape((-1, x.shape[-1]))
        top, places = ops.topk(self.router(tokens), 2)
        y = dispatch(tokens, places.data, ops.sigmoid(top), self.experts)
        return self.shared(x) + y.reshape(x.shape)
        # END SOLUTION


# %% tags=["mistake"]
# Takes the gates out of the gradient, so that the router is never trained.
def forward(self, x):
    tokens = x.reshape((-1, x.shape[-1]))
    top, places = ops.topk(self.router(tokens), 2)
    gates = mt.tensor(ops.sigmoid(top).data)
    return self.shared(x) + dispatch(tokens, places.data, gates, self.experts).reshape(x.shape)


Optional.forward = forward


# %% tags=["mistake"]
# Centres the scores over the tokens of the batch "for balance": now tokens see each other.
def forward(self, x):
    tokens = x.reshape((-1, x.shape[-1]))
    scores = self.router(tokens)
    top, places = ops.topk(scores - scores.mean(axis=0), 2)
    y = dispatch(tokens, places.data, ops.sigmoid(top), self.experts)
    return self.shared(x) + y.reshape(x.shape)


Optional.forward = forward


# %% tags=["mistake"]
# Renormalises the gates: a token can no longer say no.
def forward(self, x):
    tokens = x.reshape((-1, x.shape[-1]))
    top, places = ops.topk(self.router(tokens), 2)
    gates = ops.sigmoid(top)
    gates = gates / gates.sum(axis=-1, keepdims=True)
    return self.shared(x) + dispatch(tokens, places.data, gates, self.experts).reshape(x.shape)


Optional.forward = forward


# %%
@exercise("Optional")
def check_optional():
    layer, x = Optional(4, dtype="float64"), mt.tensor(np.random.default_rng(0).standard_normal((1, 3, 4)))
    y = layer(x)
    assert y is not None, "the forward of Optional gives nothing back yet: return a tensor shaped like x"
    assert y.shape == x.shape, f"an input of shape {x.shape} must give that shape, not {y.shape}"
    (y * y).sum().backward()
    assert layer.router.weight.grad is not None, "no gradient reaches the router: keep the gates as tensors"
    check_variant(Optional, kind="channel_mixer", claims=("token_wise",), examples=NOTEBOOK)
    # All scores very negative: both gates are shut.
    layer.router.weight.data = np.full((4, 4), -100.0)
    x = mt.tensor(np.ones((1, 1, 4)))
    error = np.abs(layer(x).numpy() - layer.shared(x).numpy()).max()
    assert error <= 1e-9, f"with scores of -400 only the shared network speaks; you differ by {error:.2g}"
    # BEGIN HIDDEN TESTS
    other = Optional(4, seed=3, dtype="float64")
    x = mt.tensor(3 * np.random.default_rng(1).standard_normal((1, 5, 4)))
    for t, l in enumerate(other.router(x).numpy()[0]):
        token, best = x[:, t : t + 1], np.argsort(-l)[:2]
        right = other.shared(token)
        for e in best:
            right = right + float(1 / (1 + np.exp(-l[e]))) * other.experts[e](token)
        error = np.abs(other(x).numpy()[0, t] - right.numpy()[0, 0]).max()
        assert error <= 1e-9, f"scores {l.round(2)}: experts {best.tolist()} should speak; off by {error:.2g}"
    x = mt.tensor(np.ones((1, 1, 4)))
    layer.router.weight.data = np.zeros((4, 4))
    right = layer.shared(x) + 0.5 * (layer.experts[0](x) + layer.experts[1](x))
    error = np.abs(layer(x).numpy() - right.numpy()).max()
    assert error <= 1e-9, f"with scores of 0 experts 0 and 1 count one half each; you differ by {error:.2g}"
    # END HIDDEN TESTS


# %%
def three(values, digits=3):
    return ", ".join(f"{value:.{digits}f}" for value in values)


rows = [
    (
        "*Outrageously Large Neural Networks* (arXiv:1701.06538): more capacity at little more computation",
        f"error {first['6 experts of 16'][0]:.3f} with {first['6 experts of 16'][1]:.0f} operations for a "
        f"token; dense with as many parameters {first['dense, width 96'][0]:.3f} with "
        f"{first['dense, width 96'][1]:.0f}",
    ),
    (
        "the same, section 4: without a remedy few experts win, and this reinforces itself",
        f"experts of six that are alive, three seeds: {three(alive['nothing'], 0)}",
    ),
    (
        "*Switch Transformers* (arXiv:2101.03961), 2.2: a weight of 0.01 is enough for the balance loss",
        f"not in 200 steps: alive with 0.01: {three(alive['loss x 0.01'], 0)}; with 0.3: "
        f"{three(alive['loss x 0.3'], 0)}",
    ),
    (
        "*Auxiliary-Loss-Free Load Balancing* (arXiv:2408.15664): better balance and better quality",
        f"overload: bias {three(worst['bias'], 2)}, loss x 0.3 {three(worst['loss x 0.3'], 2)}; "
        f"error: bias {three(errors['bias'])}, loss {three(errors['loss x 0.3'])}",
    ),
    (
        "*DeepSeekMoE* (arXiv:2401.06066): small experts make more combinations: 120 from 2 of 16, "
        "4,426,165,368 from 8 of 64",
        f"the same count: {math.comb(16, 2)} and {math.comb(64, 8):,}; no training run here",
    ),
    (
        "*Expert Choice Routing* (arXiv:2202.09368): perfect balance, more than twice as fast to train; "
        "future tokens are needed",
        f"balanced exactly; error {chooser_error:.3f}, two experts for each token on average; "
        f"speed not measured; a later token moves {leak:.0%} of the earlier outputs",
    ),
    (
        "*MoH* (arXiv:2410.11842): better than all heads, with 50 to 90 % of them",
        f"a task made for it: 2 of 8 heads {head_errors['2 of 8 heads']:.3f}, all heads "
        f"{head_errors['all 8 heads']:.3f}",
    ),
    (
        "*Universal Transformers* (arXiv:1807.03819): halting takes more steps where more are needed",
        f"steps by distance, patient start: {three(halting[-2][1], 1)}, accuracy at least "
        f"{halting[-2][0].min():.2f}; with b = 1 at the start {three(halting[1][1], 1)}, accuracy down to "
        f"{halting[1][0].min():.2f}",
    ),
    (
        "*MatFormer* (arXiv:2310.07707): nested widths match networks trained alone; widths between work",
        "nested / alone: "
        + "; ".join(f"{m}: {by_width['nested'][m]:.3f} / {by_width['own'][m]:.3f}" for m in SEEN)
        + f"; never trained, 48: {by_width['nested'][48]:.3f}",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - Make kind 0 ten times as frequent as the others. Is an even load still what you want? Compare `bias` with
#   nothing.
# - Give all targets a common part, $x A$ with one matrix $A$ for all kinds. Does a shared expert (`shared=1`)
#   help, at an equal number of operations?
# - Split each of the six experts in two of half the width, with $k = 2$. Do the kinds separate better?
# - Repeat section 6 with five seeds. How often does each start succeed? What does a higher price do?
# - Put the *same* number into all biases of `deepseek_moe`. What must happen, and does it?
# - Train the nested layer with `joint_loss` of `minitf/ffn/matformer_ffn.py`: all widths in every step. What
#   do the widths that it never trained look like now?
#
# ## Where to go next
#
# Read `minitf/nn/dispatch.py`, twenty lines that all mixtures of the library share, and
# `minitf/ffn/deepseek_moe.py`. Mixture-of-depths (arXiv:2404.02258) puts section 4 into depth: a block takes
# the best tokens of a sequence, the others skip it. With what you know: can it be causal?
