# %% [markdown]
# # Measure how the residual stream grows
#
# **What you will do.** Put a meter into transformers with three arrangements of the norm, before and after
# training. Then put a second meter on the attention weights, train until they collapse, and mend it.
#
# **What you will learn.** Why the numbers in a transformer grow with depth, and what a norm does about it.
# What depth does to gradients. What the entropy of attention is, how low it can fall, and how a bound on the
# weights keeps it up.
#
# **What you need.** Python, NumPy, variance and covariance, derivatives. Lesson `02_build_attention` helps.
# Run the cells from top to bottom. The five exercises check themselves.
#
# **Variants.** `pre_norm`, `post_norm`, `peri_norm`, `sigma_reparam`

# %%
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf.testing import CHECKS, NOTEBOOK, check_variant, exercise
from minitf.viz import Picture
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
np.set_printoptions(precision=3, suppress=True)
COLOUR = {"pre_norm": ORANGE, "peri_norm": BLUE, "post_norm": GREEN}

# %% [markdown]
# ## 1. A river with tributaries
#
# A transformer carries one vector for each token from block to block: the **residual stream** $h$. A branch
# $F$ (attention or feed-forward) reads the stream and *adds* to it. Three arrangements differ in where the
# norm stands:
#
# $$\mathrm{Post{:}}\quad h \leftarrow \mathrm{Norm}(h + F(h)) \qquad\quad
# \mathrm{Pre{:}}\quad h \leftarrow h + F(\mathrm{Norm}(h)) \qquad\quad
# \mathrm{Peri{:}}\quad h \leftarrow h + \mathrm{Norm}(F(\mathrm{Norm}(h)))$$
#
# Norm is LayerNorm: it gives every token mean 0 and variance 1 over its channels. Our meter is
#
# $$V_l = \text{mean over tokens of the variance over channels of } h_l$$
#
# where $h_l$ is the stream after block $l$. **Predict first.** Stack 16 blocks with random weights. How does
# $V_l$ depend on $l$ in each of the three? And if the last matrix of each branch is three times larger?


# %%
def variance(h):
    """V of a stream (..., D)."""
    return float(np.var(np.asarray(h), axis=-1).mean())


def walk(layout, loud=1.0, depth=16):
    """The streams h_0 .. h_depth of a stack of untrained blocks, each (4, 16, 32)."""
    h = mt.tensor(np.random.default_rng(0).standard_normal((4, 16, 32)).astype("float32"))
    streams = [h.numpy()]
    for i in range(depth):
        block = mt.build(layout, dim=32, heads=2, norm="layernorm", seed=i)
        block.mixer.wo.weight.data *= loud
        block.ffn.w2.weight.data *= loud
        h = block(h)
        streams.append(h.numpy())
    return streams


untrained = {(name, loud): walk(name, loud) for name in COLOUR for loud in (1.0, 3.0)}
for name in COLOUR:
    first, last, louder = (variance(untrained[name, loud][l]) for l, loud in ((1, 1.0), (16, 1.0), (16, 3.0)))
    print(f"{name:9}  V_1 {first:4.2f}   V_16 {last:5.2f}   V_16 with larger matrices {louder:6.2f}")
picture = Picture(7, 3)
axes = picture.subplots()
for (name, loud), streams in untrained.items():
    label = name if loud == 1.0 else f"{name}, last matrices 3 times larger"
    style = "-" if loud == 1.0 else "--"
    if loud == 1.0 or name == "pre_norm":
        axes.plot([variance(h) for h in streams], style, color=COLOUR[name], label=label)
        axes.text(16.2, variance(streams[-1]), f"{variance(streams[-1]):.0f}", va="center", fontsize=9)
axes.set(xlabel="block $l$", ylabel="variance $V_l$", xlim=(0, 17.5))
axes.legend(fontsize=8)
picture

# %% [markdown]
# Two of them grow along a line, and Post does not move at all: its last act is a norm. The dashed line says
# who sets the slope. In Pre it is the *weights*: three times larger, about nine times steeper. In Peri each
# of the two branches of a block adds variance 1, whatever its weights are: its line with the larger matrices
# is not drawn because it is the same.
#
# ### Why a line?
#
# Write the stream after a block as $h + u$, where $u$ is what the block added: its *update*. Variances over
# the channels of one token obey an exact account:
#
# $$\mathrm{Var}(h + u) = \mathrm{Var}(h) + \mathrm{Var}(u) + 2\,\mathrm{Cov}(h, u)$$
#
# If updates have one size and do not know about $h$, the last term is near zero and $V$ grows by the same
# amount in each block: a line. If updates point *along* the stream, the last term adds to it; if they point
# against it, the stream shrinks.
#
# ### Exercise 1: the account of one block
#
# Return the three terms, each as the mean over tokens. The covariance of one token is the mean over channels
# of $(h - \bar h)(u - \bar u)$, where the bar is the mean over channels.


# %%
def account(h, u):
    """Three numbers: Var(h), Var(u), 2 Cov(h, u), over channels, meaned over tokens. h, u: (tokens, D)."""
    # BEGIN SOLUTION
    centred_h = h - h.mean(axis=-1, keepdims=True)
    centred_u = u - u.mean(axis=-1, keepdims=True)
    return (centred_h**2).mean(), (centred_u**2).mean(), 2 * (centred_h * centred_u).mean()
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the factor 2 of the covariance.
def account(h, u):
    a, b = h - h.mean(axis=-1, keepdims=True), u - u.mean(axis=-1, keepdims=True)
    return (a**2).mean(), (b**2).mean(), (a * b).mean()


# %% tags=["mistake"]
# Does not subtract the mean over channels.
def account(h, u):
    return (h**2).mean(), (u**2).mean(), 2 * (h * u).mean()


# %% tags=["mistake"]
# Takes the variance over the tokens instead of the channels.
def account(h, u):
    a, b = h - h.mean(axis=0), u - u.mean(axis=0)
    return (a**2).mean(), (b**2).mean(), 2 * (a * b).mean()


# %%
@exercise("account")
def check_account():
    h, u = np.array([[1.0, 3.0]]), np.array([[0.0, 4.0]])
    answer = account(h, u)
    assert answer is not None, "account gives nothing back yet: return three numbers, Var(h), Var(u), 2 Cov"
    assert np.shape(answer) == (3,), (
        f"account must give three numbers, not something of shape {np.shape(answer)}"
    )
    for name, got, expected in zip(("Var(h)", "Var(u)", "2 Cov(h, u)"), answer, (1.0, 4.0, 4.0)):
        assert abs(got - expected) <= 1e-12, f"h = [1, 3], u = [0, 4]: {name} is {got}, expected {expected}"
    # BEGIN HIDDEN TESTS
    h, u = np.random.default_rng(0).standard_normal((2, 5, 7)) + 1.0
    got, expected = sum(account(h, u)), np.var(h + u, axis=-1).mean()
    assert abs(got - expected) <= 1e-12, f"5 tokens: the terms sum to {got:.4f}, Var(h + u) is {expected:.4f}"
    # END HIDDEN TESTS


# %% [markdown]
# ## 2. A norm on what is added
#
# Peri-LN is easily written wrongly. Some texts put the second norm *after the sum*: then it is no Peri-LN,
# and the skip path is no clean sum. Look at what that does to a stream of size 10 with a branch that is
# silent.

# %%
h = mt.tensor(np.array([[10.0, -10.0, 10.0, -10.0]]))
silent = mt.tensor(np.zeros((1, 4)))
print("norm of the branch:", (h + mt.ops.layer_norm(silent)).numpy()[0], " the stream passes")
print("norm of the sum:   ", mt.ops.layer_norm(h + silent).numpy()[0], " the stream is rewritten")

# %% [markdown]
# ### Exercise 2: the Peri-LN block
#
# Write both sub-layers: first the mixer, then the feed-forward network, which reads the *new* stream. Each
# branch gets a norm before and a norm after. The norms come as a list of four functions in the order of use.
# The check builds a real block around your function and attacks it with properties.


# %%
def peri_forward(x, mixer, ffn, norms):
    """x (B, N, D) -> (B, N, D). mixer, ffn and the four norms are functions of a tensor."""
    # BEGIN SOLUTION
    x = x + norms[1](mixer(norms[0](x)))
    return x + norms[3](ffn(norms[2](x)))
    # END SOLUTION


# %% tags=["mistake"]
# Puts the out-norms on the sum.
def peri_forward(x, mixer, ffn, norms):
    x = norms[1](x + mixer(norms[0](x)))
    return norms[3](x + ffn(norms[2](x)))


# %% tags=["mistake"]
# Is Pre-LN: the out-norms are not used.
def peri_forward(x, mixer, ffn, norms):
    x = x + mixer(norms[0](x))
    return x + ffn(norms[2](x))


# %% tags=["mistake"]
# Lets the feed-forward network read the old stream.
def peri_forward(x, mixer, ffn, norms):
    return x + norms[1](mixer(norms[0](x))) + norms[3](ffn(norms[2](x)))


# %%
class MyBlock(mt.nn.Module):
    """A whole block around `peri_forward`."""

    def __init__(self, dim, *, heads=2, seed=0, dtype="float32"):
        options = {"dim": dim, "norm": "layernorm", "heads": heads, "seed": seed, "dtype": dtype}
        self.parts = mt.build("peri_norm", **options)

    def forward(self, x):
        p = self.parts
        return peri_forward(x, p.mixer, p.ffn, [p.norm1, p.norm1_out, p.norm2, p.norm2_out])


@exercise("peri_forward")
def check_peri_forward():
    # One token, one channel, and functions whose order can be read off the result.
    norms = [lambda x, n=n: n * x for n in (2.0, 3.0, 5.0, 7.0)]
    x = mt.tensor(np.full((1, 1, 1), 2.0))
    answer = peri_forward(x, lambda x: x + 1, lambda x: x + 1, norms)
    assert answer is not None, "peri_forward gives nothing back yet: return the stream after both branches"
    got, words = answer.numpy().item(), "x = 2, branches that add 1, norms that multiply by 2, 3, 5, 7"
    steps = "2 + 3 (2 * 2 + 1) = 17, then 17 + 7 (5 * 17 + 1) = 619"
    assert abs(got - 619) <= 1e-9, f"{words}: the answer is {got}, expected {steps}"
    check_variant(MyBlock, kind="block", claims=("causal", "batch_independent"), examples=NOTEBOOK)


# %% [markdown]
# ## 3. What depth does to gradients
#
# A norm divides by the size of what it reads. So it divides gradients by that size too. Pre-LN ends in one
# norm, which reads a stream of size $\sqrt{V_L}$, $L$ the depth. **Predict:** how does the gradient of the
# *last* block change when the stack gets deeper? In Post-LN the last norm always reads the same size.
#
# We build untrained stacks of 2, 4, 8 and 16 blocks, put a random readout on top, and measure the gradient of
# the last feed-forward matrix. Mean of two seeds.


# %%
def last_gradient(layout, depth, seed):
    """Length of dLoss / d(last matrix of the last block), and the size sqrt(V) of the last stream."""
    rng = np.random.default_rng(seed)
    h = mt.tensor(rng.standard_normal((4, 16, 32)).astype("float32"))
    blocks = [mt.build(layout, dim=32, norm="layernorm", seed=100 * seed + i) for i in range(depth)]
    for block in blocks:
        h = block(h)
    y = h if layout == "post_norm" else mt.ops.layer_norm(h)
    readout = rng.standard_normal((32, 17)).astype("float32") / np.sqrt(np.float32(32))
    mt.ops.cross_entropy(y @ readout, rng.integers(0, 17, (4, 16))).backward()
    return np.linalg.norm(blocks[-1].ffn.w2.weight.grad.numpy()), np.sqrt(variance(h.numpy()))


depths = [2, 4, 8, 16]
slopes = {
    name: np.array(
        [np.mean([last_gradient(name, depth, seed) for seed in (0, 1)], axis=0) for depth in depths]
    )
    for name in COLOUR
}
picture = Picture(7, 2.6)
left, right = picture.subplots(1, 2)
for name, found in slopes.items():
    left.plot(depths, found[:, 0], "o-", color=COLOUR[name], label=name)
    right.plot(depths, found[:, 0] * found[:, 1], "o-", color=COLOUR[name], label=name)
left.set(title="gradient of the last block", ylabel="length", ylim=(0.1, 10))
right.set(title=r"gradient times $\sqrt{V_L}$", ylim=(0.1, 10))
for axes in (left, right):
    axes.set(xscale="log", yscale="log", xlabel="depth $L$")
    axes.set_xticks(depths, depths)
    axes.minorticks_off()
left.legend(fontsize=8, loc="upper right")
picture

# %% [markdown]
# In Post-LN the last gradient does not shrink with depth, in Pre-LN and Peri-LN it does. The right picture
# explains it: multiplied by the size of the stream, the two fall no more. A large stream is a brake. That is
# why the size is worth a meter: it sets the learning rate that the blocks feel.
#
# ## 4. Train them
#
# The task is *Bigram-Backcopy*. A random table says which symbol follows which, like pairs of letters in
# text. Two of eight symbols are *triggers*: after a trigger comes a copy of the symbol before it. So most of
# the answers are uncertain, and the least possible loss is not 0 but an entropy that the task knows exactly.
#
# Six blocks, width 32, three layouts, two learning rates, 32 steps with Adam each: small enough to wait for.
# The paper trains models of hundreds of millions of parameters; do not expect all that it saw. One seed.

# %%
task = mt.tasks.BigramBackcopy(n=24, v=8, triggers=2)
data = mt.train.TaskData(task)
x, y, w = task.sample(np.random.default_rng(0), 1)
shown = ["BOS" if i == task.v else "abcdefgh"[i] for i in x[0]]
print(" ".join(s + ("*" if task.is_trigger[i] else "") for s, i in zip(shown, x[0])), "   (* = trigger)")
print(f"least possible loss {task.entropy:.3f} nats; all symbols equally likely: {np.log(task.v):.3f}")


# %%
def streams_of(model, tokens):
    """h_0 .. h_L of a model without its first token, BOS, which is a case of its own."""
    found = []
    hooks = []
    for block in model.blocks:
        hooks.append(block.register_forward_pre_hook(lambda block, args: found.append(args[0])))
    hooks.append(block.register_forward_hook(lambda block, args, y: found.append(y)))
    with mt.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return [h.numpy()[:, 1:] for h in found]


def train(model, data, lr, steps, watch=None):
    """The losses of training with AdamW; `watch(step)` is called before each step."""
    optimizer = mt.train.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    rng, losses = np.random.default_rng(0), []
    for step in range(steps):
        if watch is not None:
            watch(step)
        optimizer.zero_grad()
        loss = model.loss(*data.batch(rng, 16))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


held_out = data.validation_batches(64, 1)[0]
RATES, STEPS, runs = (3e-3, 3e-2), 32, {}
for lr in RATES:
    for name in COLOUR:
        config = mt.models.Config(
            vocab=task.V_in, context=task.N, dim=32, depth=6, heads=1, block=name, norm="layernorm",
            ffn="gelu_ffn", ffn_hidden=64, position="learned", bias=False,
        )  # fmt: skip
        model = mt.models.LanguageModel(config, seed=0)
        start = streams_of(model, held_out[0])
        run = {"start": start, "losses": train(model, data, lr, STEPS)}
        run["end"] = streams_of(model, held_out[0])
        with mt.no_grad():
            run["loss"] = model.loss(*held_out).item()
        runs[name, lr] = run
picture = Picture(7, 2.6)
for axes, lr in zip(picture.subplots(1, 2, sharey=True), RATES):
    for name in COLOUR:
        axes.plot(runs[name, lr]["losses"], color=COLOUR[name], label=name)
    axes.axhline(task.entropy, color=GREY, linestyle="--", label="least possible")
    axes.set(xlabel="step", title=f"learning rate {lr}", ylim=(1, 3))
axes.legend(fontsize=8)
picture.axes[0].set_ylabel("loss (nats)")
picture

# %%
picture = Picture(7, 3.2)
for axes, lr in zip(picture.subplots(1, 2, sharey=True), RATES):
    for name in COLOUR:
        for when, style in (("start", ":"), ("end", "o-")):
            values = [variance(h) for h in runs[name, lr][when][1:]]
            label = name if when == "end" else None
            axes.plot(range(1, 7), values, style, color=COLOUR[name], markersize=4, label=label)
    axes.set(yscale="log", xlabel="block $l$", title=f"learning rate {lr}")
    axes.set_ylim(0.01, 3e4)
picture.axes[0].set_ylabel("variance $V_l$")
picture.axes[0].plot([], [], ":", color=GREY, label="before training")
picture.axes[0].plot([], [], "o-", color=GREY, markersize=4, label=f"after {STEPS} steps")
picture.axes[0].legend(fontsize=8, loc="upper left")
picture

# %% [markdown]
# Compare the dotted lines with the solid ones, and the left picture with the right. The Pre-LN stream starts
# small and ends wherever the learning rate sends it. The Peri-LN stream starts larger and depends much less
# on the learning rate. Post-LN stays near 1; only its learned gains move it.
#
# So "Peri-LN keeps the stream small" is not what we see: at the small rate its stream is the *larger* one.
# What it keeps is a bound. Here are the figures.


# %%
def ratio(name, lr):
    v = [variance(h) for h in runs[name, lr]["end"]]
    return v[-1] / v[1]


def rise(name):
    """How much larger V_6 is after training with the large rate than with the small one."""
    return variance(runs[name, RATES[1]]["end"][-1]) / variance(runs[name, RATES[0]]["end"][-1])


steeper = ratio("pre_norm", 3e-2) > 2 * ratio("peri_norm", 3e-2)
verdict = "grows faster, as in the paper" if steeper else "does not grow faster than Peri here"
print("V_6 at rate 0.03 over V_6 at rate 0.003:", {name: round(rise(name), 1) for name in COLOUR})
print("V_6 / V_1 at rate 0.03:", {name: round(ratio(name, 3e-2), 1) for name in COLOUR})
print("along depth, Pre", verdict)
lines = []
for lr in RATES:
    for name in COLOUR:
        run = runs[name, lr]
        v = [variance(h) for h in run["end"]]
        top = np.abs(run["end"][-1])
        lines.append(
            f"| {lr} | {name} | {variance(run['start'][-1]):.2f} | {v[-1]:.1f} | {v[-1] / v[1]:.1f} "
            f"| {top.max() / np.median(top):.1f} | {run['loss']:.3f} |"
        )
heads = "rate | layout | $V_6$ before | $V_6$ after | $V_6/V_1$ after | max / median of abs(h) | loss"
Markdown(f"| {heads} |\n|---|---|---|---|---|---|---|\n" + "\n".join(lines))

# %% [markdown]
# The paper says that Pre-LN grows much faster *along depth*, towards exponentially, in long training of deep
# models. Along the six blocks of this short run that does not come out: the first block grows with the
# others, so the ratio $V_6/V_1$ stays moderate. What does come out is the cause: nothing in Pre-LN limits
# what a branch may add, and training makes use of it.
#
# Where does the growth come from: larger updates, or updates along the stream? Open the account of each
# block.

# %%
picture = Picture(7, 2.8)
for axes, name in zip(picture.subplots(1, 2), ("pre_norm", "peri_norm")):
    streams = runs[name, 3e-2]["end"]
    for l in range(1, 6):
        h, u = streams[l], streams[l + 1] - streams[l]
        both = variance(h + u) - variance(h) - variance(u)
        axes.bar(l + 0.8, variance(u), 0.4, color=COLOUR[name], label="Var(u)" if l == 1 else None)
        axes.bar(l + 1.2, both, 0.4, color=GREY, label="2 Cov(h, u)" if l == 1 else None)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="block", title=f"{name}, learning rate 0.03")
    axes.legend(fontsize=8)
picture.axes[0].set_ylabel("added to the variance")
picture

# %% [markdown]
# Look at the two scales first. Then at the grey bars: from block 3 on they are the larger part, in Pre *and*
# in Peri. Updates have learned to point along the stream, so the independent updates of section 1 are a
# picture of the start only, and neither layout grows along an exact line any more. But in Peri a grey bar is
# limited: a covariance is at most the product of the two sizes, and one of them, that of the update, is set
# by the gains of norms.
#
# Now back to the losses. 32 steps are too few to reach the dashed line, but enough to compare. At the large
# rate nobody learns well, and Post-LN learns least. That fits section 3: its last gradients are not braked by
# anything, and the usual cure is a warm-up, which we left out.
#
# ## 5. A meter for attention
#
# Inside the branches sits a softmax, and it has a size of its own to watch. Let $p_j$ be the weights that one
# query gives to its $T$ keys. The **entropy** says among how many keys the weight is shared:
#
# $$\mathrm{Ent} = -\sum_j p_j \ln p_j$$
#
# $\ln T$: all alike. 0: all weight on one key. Multiply the scores by a growing number and watch. Then the
# formula itself breaks.

# %%
scores = np.random.default_rng(3).standard_normal(16)
with np.errstate(divide="ignore", invalid="ignore"):
    p = np.asarray(mt.ops.softmax(1000 * scores))
    print("times 1000, by the formula:", -(p * np.log(p)).sum())
    hidden = np.where(np.arange(16) < 8, scores, -np.inf)
    p = np.asarray(mt.ops.softmax(hidden))
    print("8 of 16 keys hidden, by the formula:", -(p * np.log(p)).sum())
sharpness = np.linspace(0, 12, 121)
curve = [-(p * np.log(p)).sum() for p in (np.asarray(mt.ops.softmax(c * scores)) for c in sharpness)]
picture = Picture(7, 2.5)
left, right = picture.subplots(1, 2, width_ratios=(1.4, 1))
left.plot(sharpness, curve, color=BLUE)
left.axhline(np.log(16), color=GREY, linestyle="--")
left.text(12, np.log(16) - 0.1, "ln 16", ha="right", va="top", fontsize=9)
left.set(xlabel="scores multiplied by", ylabel="entropy (nats)", ylim=(0, 3))
for shift, c, colour in ((-0.27, 0.2, GREY), (0, 1, BLUE), (0.27, 6, ORANGE)):
    right.bar(np.arange(16) + shift, mt.ops.softmax(c * scores), 0.27, color=colour, label=f"times {c}")
right.set(xlabel="key", ylabel="weight")
right.legend(fontsize=8)
picture

# %% [markdown]
# Both are NaN, because $0 \cdot \ln 0$ is. Many people add a small number inside the logarithm. There is a
# cleaner way. Since $\ln p_j = s_j - \ell$ with $\ell = \ln \sum_j e^{s_j}$, and the $p_j$ sum to 1,
#
# $$\mathrm{Ent} = \ell - \sum_j p_j s_j$$
#
# A hidden key has $p_j = 0$ and $s_j = -\infty$: leave it out of the sum.
#
# ### Exercise 3: the entropy from the scores
#
# Subtract the row maximum first, so that no exponential overflows; the entropy does not change.


# %%
def entropy(s):
    """Ent (...) in nats of the softmax over the last axis of s (..., T). Hidden keys have the score -inf."""
    # BEGIN SOLUTION
    s = s - s.max(axis=-1, keepdims=True)
    e = np.exp(s)
    z = e.sum(axis=-1)
    return np.log(z) - (e * np.where(e > 0, s, 0)).sum(axis=-1) / z
    # END SOLUTION


# %% tags=["mistake"]
# Multiplies the weight 0 of a hidden key by its score -inf.
def entropy(s):
    s = s - s.max(axis=-1, keepdims=True)
    e = np.exp(s)
    z = e.sum(axis=-1)
    return np.log(z) - (e * s).sum(axis=-1) / z


# %% tags=["mistake"]
# Overflows for large scores.
def entropy(s):
    e = np.exp(s)
    z = e.sum(axis=-1)
    return np.log(z) - (e * np.where(e > 0, s, 0)).sum(axis=-1) / z


# %% tags=["mistake"]
# Adds a small number inside the logarithm, to weights that do not need it.
def entropy(s):
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return -(p * np.log(p + 1e-3)).sum(axis=-1)


# %%
@exercise("entropy")
def check_entropy():
    with np.errstate(all="ignore"):
        answer = entropy(np.array([0.0, 0.0]))
        assert answer is not None, "entropy gives nothing back yet: return one number for each row of scores"
        assert np.shape(answer) == (), f"for one row (2,) the shape is {np.shape(answer)}, expected ()"
        for row, expected in [
            ([0.0, 0.0], np.log(2)),
            ([0.0, -np.inf], 0.0),
            ([5.0, 5.0, -np.inf], np.log(2)),
            ([0.0, np.log(3)], 2 * np.log(2) - 0.75 * np.log(3)),
            ([2000.0, 2000.0, 0.0], np.log(2)),
        ]:
            got = entropy(np.array(row))
            assert abs(got - expected) <= 1e-9, (
                f"scores {row}: the entropy is {got:.6f}, expected {expected:.6f}"
            )
        # BEGIN HIDDEN TESTS
        s = 3 * np.random.default_rng(1).standard_normal((2, 3, 5))
        got, log_p = entropy(s), np.asarray(mt.ops.log_softmax(s))
        assert np.shape(got) == (2, 3), f"for scores (2, 3, 5) the shape is {np.shape(got)}, expected (2, 3)"
        err = np.abs(got + (np.exp(log_p) * log_p).sum(axis=-1)).max()
        assert err <= 1e-9, f"random scores (2, 3, 5): an entropy is off by {err:.2g}"
        # END HIDDEN TESTS


# %% [markdown]
# ## 6. How low can it fall?
#
# It depends on the size of the scores. Softmax ignores a constant, so subtract the mean of the row and let
# $s$ be the length of what remains. Among all rows of that length, the lowest entropy belongs to the row in
# which *one* score stands out and the others are equal: $s\sqrt{(T-1)/T}$ against $-s/\sqrt{T(T-1)}$. With
# $b$ the weight of an ordinary key relative to the outstanding one,
#
# $$b = \exp\left(-s\sqrt{\frac{T}{T-1}}\right) \qquad\qquad
# \mathrm{Ent} \ge \ln\bigl(1 + (T-1)\,b\bigr) + \frac{s\sqrt{T(T-1)}\;b}{1 + (T-1)\,b}$$
#
# So small scores *guarantee* a high entropy. For large $s$ the floor falls like $s\,e^{-s}$, very fast.
#
# ### Exercise 4: the floor
#
# Write it for any number or array $s \ge 0$ and any $T \ge 2$. The check draws rows of scores and looks for
# one below your floor, and asks that the outstanding row stands exactly on it.


# %%
def entropy_floor(s, T):
    """The least entropy (nats) of a softmax over T scores whose centred row has length s."""
    # BEGIN SOLUTION
    b = np.exp(-s * np.sqrt(T / (T - 1)))
    return np.log(1 + (T - 1) * b) + s * np.sqrt(T * (T - 1)) * b / (1 + (T - 1) * b)
    # END SOLUTION


# %% tags=["mistake"]
# Leaves out the second term.
def entropy_floor(s, T):
    return np.log(1 + (T - 1) * np.exp(-s * np.sqrt(T / (T - 1))))


# %% tags=["mistake"]
# Turns the fraction in the exponent upside down.
def entropy_floor(s, T):
    b = np.exp(-s * np.sqrt((T - 1) / T))
    return np.log(1 + (T - 1) * b) + s * np.sqrt(T * (T - 1)) * b / (1 + (T - 1) * b)


# %%
def outstanding(s, T):
    """The row of T scores with mean 0 and length s in which one stands out."""
    row = np.full(T, -s / np.sqrt(T * (T - 1)))
    row[0] = s * np.sqrt((T - 1) / T)
    return row


def safe_entropy(s):
    """The library's way; no hidden keys."""
    log_p = np.asarray(mt.ops.log_softmax(s))
    return -(np.exp(log_p) * log_p).sum(axis=-1)


@exercise("entropy_floor")
def check_entropy_floor():
    assert entropy_floor(0.0, 2) is not None, "entropy_floor gives nothing back yet: write b, then both terms"
    for s, T in [(0.0, 2), (1.0, 2), (2.0, 5), (6.0, 16)]:
        got, expected = entropy_floor(s, T), safe_entropy(outstanding(s, T))
        words = f"s = {s}, T = {T}: the floor is {got:.4f}, expected {expected:.4f}"
        assert abs(got - expected) <= 1e-9, words
    # BEGIN HIDDEN TESTS
    rows = np.random.default_rng(0).standard_normal((500, 7)) * np.linspace(0.1, 5, 500)[:, None]
    rows = rows - rows.mean(axis=-1, keepdims=True)
    above = safe_entropy(rows) - entropy_floor(np.linalg.norm(rows, axis=-1), 7)
    assert above.min() >= -1e-9, f"a random row of 7 scores lies {-above.min():.4f} below the floor"
    # END HIDDEN TESTS


# %% [markdown]
# ## 7. Watch it collapse
#
# A small model learns to *copy*: eight symbols, a separator, and the same eight again. One block with two
# heads is enough, and at moderate learning rates it learns in 100 steps. Now raise the rate. Three meters:
#
# - the loss; guessing gives $\ln 8$;
# - the entropy of each head, divided for each row by $\ln$ of the number of keys that it sees (1 = all alike,
#   0 = one key takes all); the smaller of the two heads;
# - the **spectral norm** of $W_q W_k^\top/\sqrt{d}$, the matrix that makes scores of two tokens: the most
#   that it can stretch a vector; the larger of the two heads, which are $d$ wide.
#
# **Predict:** which meter moves first when the rate is too large?


# %%
copy = mt.tasks.Copy(n=8, v=8)
copies = mt.train.TaskData(copy)
probe = copies.validation_batches(32, 1)[0]


def matrix(linear):
    """The matrix that a linear layer, plain or reparametrised, multiplies by."""
    return (linear.merge() if hasattr(linear, "merge") else linear).weight.numpy()


def meters(model):
    """Loss, smallest normalised entropy, largest spectral norm of W_q W_k^T / sqrt(d)."""
    with mt.no_grad():
        loss = model.loss(*probe).item()
    p = model.attention_maps(probe[0])[0][:, :, 1:]  # the first row sees one key only
    ent = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1) / np.log(np.arange(2, copy.N + 1))
    mixer = model.blocks[0].mixer
    w_q, w_k = (matrix(linear).reshape(32, 2, 16) for linear in (mixer.wq, mixer.wk))
    norms = [np.linalg.norm(w_q[:, head] @ w_k[:, head].T / 4, 2) for head in (0, 1)]
    return loss, ent.mean(axis=(0, 2)).min(), max(norms)


def copy_run(lr, seed=0, change=None):
    """What the meters say every 10 steps, (11, 3), and the trained model."""
    config = mt.models.Config(
        vocab=copy.V_in, context=copy.N, dim=32, depth=1, heads=2, ffn="gelu_ffn", ffn_hidden=64,
        position="learned", bias=False,
    )  # fmt: skip
    model, rows = mt.models.LanguageModel(config, seed=seed), []
    if change is not None:
        change(model.blocks[0].mixer)
    train(model, copies, lr, 100, watch=lambda step: rows.append(meters(model)) if step % 10 == 0 else None)
    return np.array([*rows, meters(model)]), model


COPY_RATES = (3e-3, 1e-2, 3e-2, 1e-1)
plain = {lr: copy_run(lr) for lr in COPY_RATES}
for lr, (rows, _) in plain.items():
    print(f"rate {lr:5}: loss {rows[-1, 0]:.3f}, entropy {rows[-1, 1]:.3f}, spectral norm {rows[-1, 2]:6.1f}")

# %%
steps, shades = np.arange(0, 101, 10), dict(zip(COPY_RATES, (GREEN, BLUE, GREY, ORANGE)))
titles = ["loss", "smallest entropy (of 1)", "spectral norm"]


def show_meters(curves):
    """curves: (label, colour, style, rows) for each run."""
    picture = Picture(7.5, 2.6)
    for i, axes in enumerate(picture.subplots(1, 3)):
        for label, colour, style, rows in curves:
            axes.plot(steps, rows[:, i], style, color=colour, label=label)
        axes.set(xlabel="step", title=titles[i], yscale="linear" if i == 0 else "log")
        if i == 0:
            axes.axhline(np.log(8), color="black", linewidth=0.7, linestyle=":")
    picture.axes[1].legend(fontsize=7, loc="lower left")
    return picture


show_meters([(f"rate {lr}", shades[lr], "-", rows) for lr, (rows, _) in plain.items()])

# %% [markdown]
# The dotted line is guessing. At the largest rate the spectral norm has shot up and the entropy has fallen
# when we look for the second time, after ten steps, while the loss has hardly moved; it stays far from what
# the other rates reach. The heads have decided where to look before the model knew what to look for, and a
# weight near 1 has no gradient to change its mind.
#
# Low entropy as such is no illness: copying *needs* heads that look at one place, and all curves fall. The
# illness is falling before learning.
#
# Does the floor of section 6 hold in these models? For the last query, which sees all 16 keys, here is the
# entropy of every row of scores against its centred length. The line is the floor.


# %%
def last_scores(model):
    """Scores of the last query of each head and sequence in `probe`, (rows, 16)."""
    inputs, mixer = [], model.blocks[0].mixer
    hook = mixer.register_forward_pre_hook(lambda mixer, args: inputs.append(args[0].numpy()))
    model.accuracy(*probe)
    hook.remove()
    x = inputs[0].astype("float64")
    q, k = ((x @ matrix(linear)).reshape(-1, copy.N, 2, 16) for linear in (mixer.wq, mixer.wk))
    return np.einsum("bhd,bnhd->bhn", q[:, -1], k).reshape(-1, copy.N) / 4


picture = Picture(6, 2.9)
axes = picture.subplots()
lengths, closest = np.geomspace(0.5, 3000, 200), np.inf
for lr, (_, model) in plain.items():
    rows = last_scores(model)
    size = np.linalg.norm(rows - rows.mean(axis=-1, keepdims=True), axis=-1)
    axes.plot(size, safe_entropy(rows), ".", color=shades[lr], label=f"rate {lr}")
    floor = safe_entropy(np.stack([outstanding(s, copy.N) for s in size]))
    above = floor > 1e-9  # below, rounding decides
    closest = min(closest, (safe_entropy(rows)[above] / floor[above]).min(initial=np.inf))
floor = safe_entropy(np.stack([outstanding(s, copy.N) for s in lengths]))
axes.plot(lengths, floor, color="black", label="floor, 16 keys")
print(f"the row closest to its floor has {closest:.2f} times the entropy of the floor")
axes.set(xscale="log", xlabel="length of the centred scores", ylabel="entropy (nats)")
axes.legend(fontsize=8)
picture

# %% [markdown]
# ## 8. A bound on the weights
#
# The floor says what to do: keep the scores from growing. **sigmaReparam** does it by writing each matrix as
#
# $$\hat W = \frac{\gamma}{\sigma(W)}\,W$$
#
# $\sigma(W)$ is the spectral norm of $W$, and $\gamma$ a learned number. However large $W$ grows, $\hat W$
# stretches nothing by more than $|\gamma|$, and $\gamma$ is *one* number that takes small steps. A step of
# Adam moves every entry of a $D \times D$ matrix by about the learning rate; if the signs agree, the spectral
# norm moves by about $D$ times as much. $\gamma$ moves by the learning rate.
#
# Finding $\sigma$ by a full decomposition in each step would be slow. One step of *power iteration* for each
# step of training keeps up with a matrix that changes slowly. Here it starts from a random direction.

# %%
layer = mt.build("sigma_reparam", dim=32, seed=0, dtype="float64").eval()  # u moves only when we say so
u = np.random.default_rng(1).standard_normal(32)
layer.u.data = u / np.linalg.norm(u)
true, found = np.linalg.norm(layer.weight.numpy(), 2), []
for _ in range(40):
    layer.power_iterate()
    found.append(layer.sigma.data.item() / true)
print("sigma found / true after 1, 5, 10, 20, 40 steps:", np.array(found)[[0, 4, 9, 19, 39]])
x = mt.tensor(np.random.default_rng(2).standard_normal((3, 32)))
before = layer(x).numpy()
layer.weight.data *= 100.0
moved = np.abs(layer(x).numpy() - before).max() / np.abs(before).max()
print(f"after W * 100 the outputs change by {moved:.0e} of their size")

# %% [markdown]
# ### Exercise 5: the reparametrised matrix, with its gradient
#
# Let `np.linalg.svd` find the singular vectors $u$ and $v$ of $W$ that belong to the largest singular value.
# Treat them as constants and write $\sigma = u^\top W v$ *as an operation on the tensor* $W$, so that the
# gradient passes through it. (That is the true gradient of $\sigma$: at the largest stretch, turning $u$ or
# $v$ changes nothing to first order.) A consequence that the check uses: $\hat W$ does not change when $W$
# gets longer, so the gradient of any loss is orthogonal to $W$.


# %%
def sigma_weight(w, gamma):
    """W_hat (D, E) from the tensors W (D, E) and gamma (a scalar). Array of a tensor: w.numpy()."""
    # BEGIN SOLUTION
    left, _, right = np.linalg.svd(w.numpy())
    u, v = left[:, :1], right[:1].T
    sigma = (mt.tensor(u.T) @ w @ mt.tensor(v)).sum()
    return w * (gamma / sigma)
    # END SOLUTION


# %% tags=["mistake"]
# Takes sigma for a constant: the gradient does not pass through it.
def sigma_weight(w, gamma):
    return w * (gamma / float(np.linalg.norm(w.numpy(), 2)))


# %% tags=["mistake"]
# Divides by the Frobenius norm instead of the spectral norm.
def sigma_weight(w, gamma):
    return w * (gamma / mt.ops.sqrt(mt.ops.square(w).sum()))


# %% tags=["mistake"]
# Forgets gamma.
def sigma_weight(w, gamma):
    left, _, right = np.linalg.svd(w.numpy())
    return w / (mt.tensor(left[:, :1].T) @ w @ mt.tensor(right[:1].T)).sum() + 0 * gamma


# %%
class MyLinear(mt.nn.Module):
    """A linear layer around `sigma_weight`."""

    def __init__(self, dim, *, heads=2, seed=0, dtype="float32"):
        self.weight = mt.nn.Parameter(np.random.default_rng(seed).standard_normal((dim, dim)).astype(dtype))
        self.gamma = mt.nn.Parameter(np.asarray(1.5, dtype=dtype))

    def forward(self, x):
        return x @ sigma_weight(self.weight, self.gamma)


@exercise("sigma_weight")
def check_sigma_weight():
    w, gamma = (
        mt.tensor(np.diag([3.0, 4.0]), requires_grad=True),
        mt.tensor(np.array(2.0), requires_grad=True),
    )
    answer = sigma_weight(w, gamma)
    assert answer is not None, "sigma_weight gives nothing back yet: return the matrix gamma / sigma W"
    assert answer.shape == (2, 2), f"the shape is {answer.shape}, expected that of W, (2, 2)"
    got = np.diag(answer.numpy())
    assert np.abs(got - [1.5, 2.0]).max() <= 1e-9, (
        f"W = diag(3, 4), gamma = 2: diag({got}), expected diag(1.5, 2)"
    )
    answer[0, 0].backward()
    slope = w.grad.numpy()
    along = float((slope * np.diag([3.0, 4.0])).sum())
    assert abs(along) <= 1e-9, (
        f"the gradient of W_hat[0, 0] is {slope.tolist()}: <gradient, W> is {along:.3f}, not 0"
    )
    # All checks but that of gradients, which wants the second derivative too: u and v would have to move.
    first = [name for name in CHECKS if name != "gradients"]
    check_variant(MyLinear, kind="channel_mixer", claims=("token_wise",), checks=first, examples=NOTEBOOK)


# %% [markdown]
# Now the treatment. Only the two matrices that make scores are changed, $W_q$ and $W_k$; everything else
# keeps its too large steps. If the collapse comes from the scores, this is enough. At the largest rate we
# take three seeds.


# %%
def bounded(mixer):
    """Replace W_q and W_k by reparametrised ones with the same start."""
    for name in ("wq", "wk"):
        values = getattr(mixer, name).weight.numpy().copy()
        setattr(mixer, name, mt.build("sigma_reparam", dim=32, values=values, bias=False))


mended = {lr: copy_run(lr, change=bounded) for lr in (3e-2, 1e-1)}
seeds = {
    "plain": [plain[1e-1][0], *(copy_run(1e-1, seed)[0] for seed in (1, 2))],
    "sigmaReparam": [mended[1e-1][0], *(copy_run(1e-1, seed, bounded)[0] for seed in (1, 2))],
}
for name, found in seeds.items():
    print(f"rate 0.1, {name:12}  loss", np.array([rows[-1, 0] for rows in found]), end="   ")
    print("entropy", np.array([rows[-1, 1] for rows in found]))
show_meters([
    (name if i == 0 else None, colour, "-", rows)
    for name, colour in (("plain", ORANGE), ("sigmaReparam", BLUE))
    for i, rows in enumerate(seeds[name])
])  # fmt: skip

# %% [markdown]
# Same rate, same start, same data: the two matrices are enough. The blue models are slow (everything else
# still takes too large steps), but their heads stay undecided long enough to learn where to look.

# %%
last = {name: np.array([rows[-1] for rows in found]) for name, found in seeds.items()}
by_rate = [plain[lr][0][-1, 1] for lr in COPY_RATES]
top = {name: np.abs(runs[name, 3e-2]["end"][-1]) for name in ("pre_norm", "peri_norm")}
verdict = "as the paper says" if steeper else "**not** reproduced along depth"
falls = "falls with every rate" if np.all(np.diff(by_rate) < 0) else "does not fall with every rate"
(pre_2, pre_16), (post_2, post_16) = (slopes[name][[0, -1], 0] for name in ("pre_norm", "post_norm"))
stuck, cured = (f"{found[:, 0].min():.2f} to {found[:, 0].max():.2f}" for found in last.values())
factor = last["sigmaReparam"][:, 1].min() / last["plain"][:, 1].max()
rows = [
    (
        "*Peri-LN* (arXiv:2502.02732): in training the variance of Pre-LN grows fast with depth, that of "
        "Peri-LN about linearly",
        f"$V_6/V_1$ at rate 0.03: Pre {ratio('pre_norm', 3e-2):.1f}, Peri {ratio('peri_norm', 3e-2):.1f}: "
        f"{verdict}. Ten times the rate makes $V_6$ larger {rise('pre_norm'):.0f} times in Pre, "
        f"{rise('peri_norm'):.1f} times in Peri",
    ),
    (
        "the same: Pre-LN has massive activations",
        "max / median of the last stream at rate 0.03: "
        + ", ".join(f"{name} {h.max() / np.median(h):.1f}" for name, h in top.items())
        + ": **not** reproduced at this size",
    ),
    (
        "*On Layer Normalization in the Transformer Architecture* (arXiv:2002.04745): at the start, the "
        "gradient of the last layer shrinks with depth in Pre-LN, not in Post-LN",
        f"2 to 16 blocks: Pre {pre_2:.2f} to {pre_16:.2f}, Post {post_2:.2f} to {post_16:.2f}",
    ),
    (
        "*Stabilizing Transformer Training by Preventing Attention Entropy Collapse* (arXiv:2303.06296): low "
        "entropy goes with unstable training",
        "smallest entropy at rates "
        + ", ".join(f"{lr}: {e:.3f}" for lr, e in zip(COPY_RATES, by_rate))
        + f"; it {falls}. Loss at 0.1, 3 seeds: {stuck} (guessing: {np.log(8):.2f})",
    ),
    (
        "the same: a tight floor under the entropy, set by the size of the scores",
        f"no row of the trained models below it; the closest has {closest:.2f} times its floor",
    ),
    (
        "the same: sigmaReparam prevents the collapse",
        f"rate 0.1, 3 seeds: loss {cured}, entropy at least {factor:.0f} times that of plain. "
        f"Rate 0.03, 1 seed: entropy {mended[3e-2][0][-1, 1]:.2f} against {by_rate[2]:.2f}",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - Train Pre-LN and Peri-LN with depth 8, width 64 and 600 steps (some minutes). Plot $V_l$ again. Is one of
#   the curves bent now? Which?
# - Give Post-LN a warm-up: let the learning rate rise over the first 20 steps. Does it learn at 0.03?
# - Keep BOS in `streams_of` and measure it apart. Is its stream larger than that of the other tokens?
# - Put sigmaReparam on *all* matrices of the copy model, not only on $W_q$ and $W_k$. Is more better?
# - Another cure is to normalise $q$ and $k$ themselves. What bound on the scores does that give? Which
#   entropy can then never be undercut, with 16 keys?
#
# ## Where to go next
#
# Read `minitf/blocks/peri_norm.py` and `minitf/adapt/sigma_reparam.py`, and the identities at their ends:
# several are sentences of this lesson. `mt.catalogue.find("*", kind="block")` lists other ways to arrange a
# block.
