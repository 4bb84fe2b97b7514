# %% [markdown]
# # Draw sparse attention and follow its reach
#
# **What you will do.** Draw which tokens act on which, in eight kinds of attention that avoid the cost of
# all pairs. Follow the news from layer to layer, count what each pattern costs, hash tokens into buckets,
# and train small models on two tasks whose answer stands far away.
#
# **What you will learn.** Windows, sinks, global and random blocks, selection and hashing; the receptive
# field of a stack of layers and the diameter of a graph; why a mask alone saves nothing; how many rounds of
# hashing are enough; and why no pattern is the best for every task.
#
# **What you need.** Softmax attention and masks, as in lesson `02_build_attention`. Run the cells from top
# to bottom. The five exercises check themselves.
#
# **Variants.** `sliding_window`, `attention_sinks`, `bigbird`, `nsa`, `reformer_lsh`, `combiner_fixed`,
# `linformer`, `performer_favor`

# %%
import numpy as np

import minitf as mt
from minitf.testing import NOTEBOOK, check_variant, exercise
from minitf.viz import Picture, cost_against_length, mask_picture, mixing_matrix
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
PINK, YELLOW, SKY = "#CC79A7", "#E69F00", "#56B4E9"

# %% [markdown]
# ## 1. A pattern is a picture
#
# In softmax attention every token looks at every token: $N$ tokens make $N^2$ pairs. A book has a million
# tokens, so something must be left out. What? Let $x_j$ be the input token $j$ and $y_i$ the output token
# $i$ of a layer, and measure how strongly one acts on the other:
#
# $$M_{ij} = \left\| \frac{\partial y_i}{\partial x_j} \right\|_F$$
#
# `mixing_matrix` computes it exactly, from the Jacobian. A white square is an exact zero: token $j$ cannot
# change output $i$ at all. Below are eight answers to "what may be left out?", for 32 tokens, queries down,
# keys across.
#
# **Predict.** Four of the eight leave out nothing (or nothing but the future), although none of them gives
# each pair a score of its own. Which four?

# %%
options = {
    "sliding_window": dict(left=4),
    "attention_sinks": dict(window=5, sinks=2),
    "bigbird": dict(block=2, random=1),
    "nsa": dict(length=4, stride=4, block=4, picks=3, window=4),
    "reformer_lsh": dict(chunk=4, rounds=1),
    "combiner_fixed": dict(block=6),
    "linformer": dict(rank=4, context=32),
    "performer_favor": dict(features=16, causal=False),
}
layers = {
    name: mt.build(name, dim=8, heads=1, seed=0, dtype="float64", **more) for name, more in options.items()
}
tokens = mt.tensor(np.random.default_rng(0).standard_normal((1, 32, 8)))
matrices = {name: mixing_matrix(layer, tokens) for name, layer in layers.items()}
picture = Picture(8, 4.5)
for axes, (name, m) in zip(picture.subplots(2, 4).flat, matrices.items()):
    shade = np.sqrt(m / m.max(axis=1, keepdims=True))
    axes.imshow(np.where(m > 0, 0.12 + 0.88 * shade, 0), cmap="Blues", vmin=0, vmax=1)
    axes.set_title(f"{name}\n{(m > 0).mean():.0%} of all pairs", fontsize=9)
    axes.set(xticks=[0, 31], yticks=[0, 31])
picture

# %% [markdown]
# There are three families.
#
# - **The place decides.** A window sees its neighbours. Sinks add the first tokens, two columns on the
#   left. Big Bird sees in blocks: neighbours, the first and the last block, and blocks drawn at random.
# - **The content decides.** Reformer hashes tokens into buckets.
# - **Nobody is left out.** Combiner, Linformer and Performer are full, the first as a causal triangle. They
#   do not leave out pairs, they squeeze many tokens into a few summaries.
#
# NSA belongs to all three: a window, blocks that are selected by their score, and below them the pale
# triangle, a summary of every finished block, cheap but coarse.
#
# The picture alone does not tell the first family from the second. New tokens do. How many of the 1,024
# pairs switch on or off when the content changes?

# %%
other = mt.tensor(np.random.default_rng(1).standard_normal((1, 32, 8)))
for name, layer in layers.items():
    changed = int(((mixing_matrix(layer, other) > 0) != (matrices[name] > 0)).sum())
    print(f"{name:16} {changed:4} pairs changed")

# %% [markdown]
# Only Reformer's pattern moved. NSA selects by content too, but its summaries already touch every finished
# block. So the selection does not change *who* is seen, it changes *how well*.
#
# ### Exercise 1: a window that never forgets the first tokens
#
# StreamingLLM keeps two things in its cache: the last `window` tokens, the token itself included, and the
# first `sinks` tokens of the stream. Nobody sees the future, and that holds for sinks too. Write the
# pattern. For 12 tokens, a window of 3 and 2 sinks it looks like this:

# %%
layer = mt.build("attention_sinks", dim=4, heads=1, window=3, sinks=2)
seen = layer.weights(mt.zeros((1, 12, 4))).numpy()[0, 0] > 0
mask_picture(seen, title="window 3, sinks 2")


# %%
def sink_pattern(n, window, sinks):
    """Boolean (n, n), True where query i (down) sees key j (across)."""
    # BEGIN SOLUTION
    i, j = np.arange(n)[:, None], np.arange(n)
    return (j <= i) & ((i - j < window) | (j < sinks))
    # END SOLUTION


# %% tags=["mistake"]
# Counts the window without the token itself.
def sink_pattern(n, window, sinks):
    i, j = np.arange(n)[:, None], np.arange(n)
    return (j <= i) & ((i - j <= window) | (j < sinks))


# %% tags=["mistake"]
# Lets early tokens see sinks that come after them.
def sink_pattern(n, window, sinks):
    i, j = np.arange(n)[:, None], np.arange(n)
    return ((j <= i) & (i - j < window)) | (j < sinks)


# %%
@exercise("sink_pattern")
def check_sink_pattern():
    for n, window, sinks in [(1, 1, 0), (3, 1, 0), (3, 2, 0), (3, 1, 2), (12, 3, 2)]:
        answer = sink_pattern(n, window, sinks)
        assert answer is not None, "sink_pattern gives nothing back yet: return a boolean array (n, n)"
        words = f"for {n} tokens, window {window} and {sinks} sinks"
        assert np.shape(answer) == (n, n), f"{words} the shape is {np.shape(answer)}, not {(n, n)}"
        for i, j in np.ndindex(n, n):
            due = j <= i and (j > i - window or j < sinks)
            here = bool(answer[i, j])
            assert here == due, f"{words}, query {i} and key {j}: your pattern says {here}, expected {due}"
    # BEGIN HIDDEN TESTS
    for n, window, sinks in [(17, 4, 3), (9, 20, 1), (6, 1, 6)]:
        layer = mt.build("attention_sinks", dim=4, heads=1, window=window, sinks=sinks)
        due = layer.weights(mt.zeros((1, n, 4))).numpy()[0, 0] > 0
        wrong = np.argwhere(sink_pattern(n, window, sinks) != due).tolist()
        assert not wrong, f"{n} tokens, window {window}, {sinks} sinks: pairs {wrong[:3]} are wrong"
    # END HIDDEN TESTS


# %% [markdown]
# ## 2. How far does the news travel?
#
# A window of 5 keys looks 4 tokens back. Does a model made of it forget everything older? No: the neighbour
# has looked at its own neighbours one layer before. The news travels one window per layer.
#
# **Predict.** How many layers does the last of 32 tokens need until it can hear of the first?
#
# Write the pattern as a matrix $P$ of zeros and ones, $P_{ij} = 1$ where $i$ sees $j$. (A token always
# keeps itself: the residual connection adds $x_i$ to what attention brings.) News from $j$ reaches $i$ in
# two layers if some token $k$ in between sees $j$ and is seen by $i$: if $\sum_k P_{ik} P_{kj} > 0$. That
# is a matrix product. So after $L$ layers the pattern is $P^L > 0$: the **receptive field**.
#
# The upper row below is $P^L > 0$ for a window of 5. The lower row is the Jacobian of $L$ real layers with
# random weights, each with its residual connection.


# %%
def stack(layers):
    def run(x):
        for layer in layers:
            x = x + layer(x)
        return x

    return run


windows = [mt.build("sliding_window", dim=8, heads=1, left=4, seed=s, dtype="float64") for s in range(7)]
one, depths = matrices["sliding_window"] > 0, (1, 2, 4, 7)
reached = {depth: np.linalg.matrix_power(one.astype(int), depth) > 0 for depth in depths}
measured = {depth: mixing_matrix(stack(windows[:depth]), tokens) for depth in depths}
picture = Picture(8, 4.3)
rows = picture.subplots(2, 4)
for column, depth in enumerate(depths):
    rows[0, column].imshow(reached[depth], cmap="Blues", vmax=1.4)
    shade = np.log10(np.maximum(measured[depth] / measured[depth].max(), 1e-6))
    rows[1, column].imshow(np.where(measured[depth] > 0, shade, np.nan), cmap="Blues", vmin=-7, vmax=0)
    rows[0, column].set_title(f"{depth} layer{'s' * (depth > 1)}: reach {4 * depth}", fontsize=9)
for axes in rows.flat:
    axes.set(xticks=[0, 31], yticks=[0, 31])
rows[0, 0].set_ylabel("power of the pattern")
rows[1, 0].set_ylabel("Jacobian (log scale)")
picture

# %%
for depth in depths:
    agree = np.array_equal(reached[depth], measured[depth] > 0)
    m, last = measured[depth], reached[depth][31]
    print(f"{depth} layers: zeros of the Jacobian are those of the power: {agree};", end=" ")
    share = m[31, last.argmax()] / m[31, 31]
    print(f"the last token hears of {last.sum():2}, the oldest of them with {share:.0e} of its own weight")

# %% [markdown]
# Two lessons. The zeros agree exactly: outside the receptive field there is *nothing*, whatever the weights
# are, so training cannot help. Inside it there is only the possibility to hear. At the rim of the field one
# single chain of tokens passes the news, and with random weights hardly anything arrives.
#
# ### Exercise 2: the receptive field
#
# Write it for any pattern. Zero layers pass nothing on: then each token knows itself only. (NumPy's `@` of
# two boolean arrays is what you want: *and* for the product, *or* for the sum.)


# %%
def reach(pattern, layers):
    """Boolean (N, N), True where news of token j (across) reaches token i (down) through so many layers.

    pattern: boolean (N, N), True on its diagonal.
    """
    # BEGIN SOLUTION
    found = np.eye(len(pattern), dtype=bool)
    for _ in range(layers):
        found = pattern @ found
    return found
    # END SOLUTION


# %% tags=["mistake"]
# Takes the power of every entry by itself.
def reach(pattern, layers):
    return pattern.astype(int) ** layers > 0


# %% tags=["mistake"]
# Swaps who looks and who is looked at.
def reach(pattern, layers):
    found = np.eye(len(pattern), dtype=bool)
    for _ in range(layers):
        found = pattern.T @ found
    return found


# %% tags=["mistake"]
# Goes one layer too far.
def reach(pattern, layers):
    found = pattern
    for _ in range(layers):
        found = pattern @ found
    return found


# %%
@exercise("reach")
def check_reach():
    chain = np.eye(4, dtype=bool) | np.eye(4, k=-1, dtype=bool)
    for n, layers in [(1, 1), (2, 1), (2, 0), (3, 2), (4, 2)]:
        pattern = chain[:n, :n]
        answer = reach(pattern, layers)
        assert answer is not None, "reach gives nothing back yet: return a boolean array (N, N)"
        words = f"{n} tokens, each sees the one before it, {layers} layers"
        assert np.shape(answer) == (n, n), f"{words}: the shape is {np.shape(answer)}, not {(n, n)}"
        for i, j in np.ndindex(n, n):
            here, due = bool(answer[i, j]), 0 <= i - j <= layers
            assert here == due, f"{words}: token {i} hears of token {j}: you say {here}, expected {due}"
    # BEGIN HIDDEN TESTS
    layer = mt.build("bigbird", dim=8, heads=1, block=2, random=0, seed=1, dtype="float64")
    x = mt.tensor(np.random.default_rng(2).standard_normal((1, 20, 8)))
    pattern = layer.weights(x).numpy()[0, 0] > 0
    wrong = np.argwhere(reach(pattern, 2) != (mixing_matrix(stack([layer, layer]), x) > 0)).tolist()
    assert not wrong, f"two layers of Big Bird, 20 tokens: pairs {wrong[:3]} differ from the Jacobian"
    # END HIDDEN TESTS


# %% [markdown]
# ### Better than walking
#
# A window walks: $L$ layers reach $L w$ tokens, where $w$ is how far it looks. Four ways to be faster:
#
# - **dilation**: layer $l$ sees only every $2^l$-th neighbour, $2^l$ times as far;
# - **global tokens**: a few tokens see all and are seen by all, so any two tokens are two steps apart;
# - **random pairs**: a token also sees two others, anywhere; each of those sees two others ...
# - **sinks**: the first tokens are seen by all. They do see nothing but themselves, because the future is
#   hidden.
#
# **Predict** the order of the five curves, for 128 tokens and windows of $w = 4$ to each side.

# %%
n, rng = 128, np.random.default_rng(0)
i, j = np.arange(n)[:, None], np.arange(n)
near = abs(i - j) <= 4
shortcuts = np.zeros((n, n), bool)
np.put_along_axis(shortcuts, rng.integers(0, n, (n, 2)), True, axis=1)
patterns = {
    "window": [near] * 10,
    "window, dilated 1, 2, 4, ...": [((i - j) % 2**l == 0) & (abs(i - j) <= 4 * 2**l) for l in range(10)],
    "window and 2 random tokens": [near | shortcuts] * 10,
    "window and 1 global token": [near | (i == 0) | (j == 0)] * 10,
    "causal window and 4 sinks": [(j <= i) & ((i - j <= 4) | (j < 4))] * 10,
}
picture = Picture(6.5, 3)
axes = picture.subplots()
for color, (name, sequence) in zip([GREY, SKY, ORANGE, BLUE, GREEN], patterns.items()):
    found, allowed = [np.eye(n, dtype=bool)], (j <= i) if "causal" in name else np.ones((n, n), bool)
    for pattern in sequence:
        found.append(pattern @ found[-1])
    shares = [heard[allowed].mean() for heard in found]
    axes.plot(range(11), shares, "o-", color=color, label=name, markersize=4)
axes.set(xlabel="layers", ylabel="share of pairs that hear", ylim=(0, 1.05), xticks=range(11))
axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
picture

# %% [markdown]
# One global token connects everybody in two layers. Random pairs and dilation need a few. The plain window
# and the window with sinks walk side by side: sinks add their own columns and nothing else. (The green
# curve counts pairs with $j \le i$ only, half of them, so it is a little higher.)
#
# ### Exercise 3: the diameter
#
# The **diameter** of a pattern is the smallest number of layers after which every token hears of every
# other. Write it. If that never happens, the answer is `np.inf`. You need to try no more than $N - 1$
# layers: a shortest path never visits a token twice. Do not use your `reach`, so that each exercise can be
# checked by itself.


# %%
def diameter(pattern):
    """The fewest layers until all hear of all, or np.inf. pattern: boolean (N, N), True on its diagonal."""
    # BEGIN SOLUTION
    found = np.eye(len(pattern), dtype=bool)
    for layers in range(len(pattern)):
        if found.all():
            return layers
        found = pattern @ found
    return np.inf
    # END SOLUTION


# %% tags=["mistake"]
# Follows the first token only.
def diameter(pattern):
    found = np.eye(len(pattern), dtype=bool)[0]
    for layers in range(len(pattern)):
        if found.all():
            return layers
        found = found @ pattern
    return np.inf


# %% tags=["mistake"]
# Starts from the pattern itself, and does not count that layer.
def diameter(pattern):
    found = pattern
    for layers in range(len(pattern)):
        if found.all():
            return layers
        found = pattern @ found
    return np.inf


# %% tags=["mistake"]
# Stops when nothing changes, and does not ask whether all is reached.
def diameter(pattern):
    found, layers = np.eye(len(pattern), dtype=bool), 0
    while not np.array_equal(pattern @ found, found):
        found, layers = pattern @ found, layers + 1
    return layers


# %%
@exercise("diameter")
def check_diameter():
    everyone, line = np.ones((2, 2), bool), abs(np.arange(5)[:, None] - np.arange(5)) <= 1
    star = np.eye(4, dtype=bool)
    star[0] = star[:, 0] = True
    cases = [
        ("2 tokens that see each other", everyone, 1),
        ("1 token", everyone[:1, :1], 0),
        ("2 tokens, the first does not see the second", np.tri(2, dtype=bool), np.inf),
        ("4 tokens, the first is global", star, 2),
        ("5 tokens in a line, each sees its neighbours", line, 4),
    ]
    for words, pattern, due in cases:
        answer = diameter(pattern.copy())
        assert answer is not None, "diameter gives nothing back yet: return a number of layers, or np.inf"
        assert answer == due, f"{words}: your diameter is {answer}, expected {due}"
    # BEGIN HIDDEN TESTS
    ring = np.roll(np.eye(17, dtype=bool), 1, axis=1) | np.eye(17, dtype=bool)
    assert diameter(ring) == 16, f"17 tokens in a ring, each sees the next: {diameter(ring)}, expected 16"
    # END HIDDEN TESTS


# %% [markdown]
# How does the diameter grow with the number of tokens? Each step of the picture doubles $N$. In "random
# only" each token draws two others, and those that are drawn see each other: no neighbours, four others on
# average.


# %%
def layers_until_all(pattern):
    found, steps = pattern.astype("float32"), 1
    while not found.all() and steps < len(pattern):
        found, steps = (pattern.astype("float32") @ found > 0).astype("float32"), steps + 1
    return steps


def random_pairs(n, count):
    found = np.eye(n, dtype=bool)
    np.put_along_axis(found, np.random.default_rng(n).integers(0, n, (n, count)), True, axis=1)
    return found | found.T


lengths, diameters = [16, 32, 64, 128, 256], {}
for n in lengths:
    near = abs(np.arange(n)[:, None] - np.arange(n)) <= 4
    bird = (
        mt.build("bigbird", dim=4, heads=1, block=4, random=1).weights(mt.zeros((1, n, 4))).numpy()[0, 0] > 0
    )
    kinds = {
        "window": near,
        "random only": random_pairs(n, 2),
        "window and random": near | random_pairs(n, 2),
    }
    for name, pattern in {**kinds, "bigbird": bird}.items():
        diameters.setdefault(name, []).append(layers_until_all(pattern))
picture = Picture(5.5, 2.8)
axes = picture.subplots()
for color, marker, (name, values) in zip([GREY, YELLOW, ORANGE, BLUE], "osdo", diameters.items()):
    axes.loglog(lengths, values, marker + "-", color=color, label=name, markersize=5, base=2)
axes.set(xlabel="tokens", ylabel="diameter (layers)", ylim=(0.8, 100))
axes.set_xticks(lengths, lengths)
axes.set_yticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
axes.legend(fontsize=8)
picture

# %% [markdown]
# The window's diameter doubles with $N$, the random graph's gains about one layer each time ($\log N$), Big
# Bird's stays at two from 32 tokens on. A few long edges are worth more than many short ones.
#
# ## 3. What does it cost?
#
# With $N$ tokens of width $D$, all scores and the weighted sum take about $4 N^2 D$ operations. A window of
# $w$ keys needs $4 N w D$, blocks of $\sqrt N$ with summaries (Combiner) need $N \sqrt N$. The usual way to
# *try* a pattern, however, is to hide the other pairs with a mask.
#
# **Predict.** By how much is full attention with a window's mask cheaper than full attention?
#
# `mt.profile` counts operations, it does not time them, so these curves are the same on every machine. One
# head of width 16; all layers have their projections.

# %%
n_tokens, width = [64, 128, 256, 512, 1024, 2048], 16


def cost(name, mask=None, **more):
    def ready(n):
        sized = {key: value(n) if callable(value) else value for key, value in more.items()}
        layer = mt.build(name, dim=width, heads=1, seed=0, **sized)
        x = mt.tensor(np.random.default_rng(0).standard_normal((1, n, width)).astype("float32"))
        return (layer, (x,)) if mask is None else (lambda x: layer(x, mask=mask(n)), (x,))

    return cost_against_length(ready, n_tokens)


def window_mask(n):
    return abs(np.arange(n)[:, None] - np.arange(n)) <= 31


costs = {
    "softmax_attention": cost("softmax_attention"),
    "softmax, window as a mask": cost("softmax_attention", mask=window_mask),
    "nsa": cost("nsa", length=8, stride=4, block=16, picks=3, window=32),
    "combiner_fixed, block √N": cost("combiner_fixed", block=lambda n: int(n**0.5)),
    "bigbird": cost("bigbird", block=16, random=1),
    "reformer_lsh": cost("reformer_lsh", chunk=16, rounds=2),
    "sliding_window": cost("sliding_window", left=31),
    "attention_sinks": cost("attention_sinks", window=32, sinks=4),
    "performer_favor": cost("performer_favor", features=32),
    "linformer": cost("linformer", rank=32, context=2048),
}
picture = Picture(7.5, 3.4)
axes = picture.subplots()
styles = ["-", (0, (1, 2)), "-", "-", "-", "-", "-", (0, (3, 2)), "-", (0, (3, 2))]
colors = ["black", "red", PINK, YELLOW, SKY, ORANGE, BLUE, BLUE, GREEN, GREEN]
for (name, one), color, style in zip(costs.items(), colors, styles):
    label = f"{name}: power {one.slopes[0]:.2f}"
    axes.loglog(n_tokens, one.flops, color=color, linestyle=style, label=label, linewidth=1.8)
axes.set(xlabel="tokens N", ylabel="operations")
axes.set_xticks(n_tokens, n_tokens)
axes.minorticks_off()
axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.02, 0.5), title="growth at the end")
picture

# %% [markdown]
# The dotted red line lies on the black one: **a mask saves nothing.** All scores are computed, then thrown
# away. A sparse pattern saves work only where the code never touches the other pairs. And for short
# sequences some of the sparse layers cost more than what they replace:

# %%
full = np.array(costs["softmax_attention"].flops)
for name in list(costs)[2:8]:
    cheaper = np.array(costs[name].flops) < full
    first = n_tokens[int(cheaper.argmax())] if cheaper.any() else "never"
    print(f"{name:26} at 64 tokens {costs[name].flops[0] / full[0]:4.1f} x full,"
          f" at 2048 {costs[name].flops[-1] / full[-1]:.3f} x, cheaper from {first} on")  # fmt: skip
x = mt.tensor(np.random.default_rng(0).standard_normal((1, 2048, width)).astype("float32"))
layer = mt.build("reformer_lsh", dim=width, heads=1, chunk=16, rounds=2)
with mt.profile() as p:
    layer(x)
sorting = next(row.flops for row in p.rows if row.name == "argsort")
print(f"\nreformer_lsh sorts {sorting:,} comparisons: {sorting / p.flops:.1%} of its {p.flops:,} operations")
growing = cost("reformer_lsh", chunk=16, rounds=2, buckets=lambda n: 2 * (n // 16))
print(f"with 2 N / 16 buckets instead of at most 64, its power is {growing.slopes[0]:.2f}")

# %% [markdown]
# Three famous formulas look different when counted:
#
# - Reformer is called $N \log N$. The logarithm is the sort, which is a crumb. The rest is linear, as long as
#   the number of buckets has a cap. If there are always $N / m$ chunks, of $m$ tokens each, and twice as many
#   buckets, then hashing itself, $N$ tokens against $N / m$ directions, is on its way to quadratic.
# - NSA is still quadratic: the summaries of blocks are $N / s$ keys for each token, for a stride of $s$. It
#   divides $N^2$, it does not remove it. The bend comes late.
# - Combiner has power 1.5 in the limit; here the linear projections still pull it down.
#
# ### Exercise 4: a window that costs a window
#
# Compute causal window attention without ever making $N^2$ scores. Cut the queries into chunks of `left +
# 1` tokens. A chunk needs the keys from `left` before its first token to its last token, and within these a
# mask. `mt.ops.softmax_attention(q, k, v, mask=...)` takes boolean (queries, keys) and does the scale;
# `mt.ops.concat(parts, axis=2)` joins the chunks. The layer below calls your function.


# %%
def window_attention(q, k, v, left):
    """Answers (B, H, N, d) where query i sees keys i - left .. i. q, k, v: tensors (B, H, N, d)."""
    # BEGIN SOLUTION
    parts, n = [], q.shape[2]
    for start in range(0, n, left + 1):
        end, first = min(start + left + 1, n), max(0, start - left)
        i, j = np.arange(start, end)[:, None], np.arange(first, end)
        keys, values = k[:, :, first:end], v[:, :, first:end]
        parts.append(
            mt.ops.softmax_attention(q[:, :, start:end], keys, values, mask=(j <= i) & (i - j <= left))
        )
    return mt.ops.concat(parts, axis=2)
    # END SOLUTION


# %% tags=["mistake"]
# A mask over all pairs: right, but it costs N^2.
def window_attention(q, k, v, left):
    i, j = np.arange(q.shape[2])[:, None], np.arange(q.shape[2])
    return mt.ops.softmax_attention(q, k, v, mask=(j <= i) & (i - j <= left))


# %% tags=["mistake"]
# Chunks do not look back beyond their own first token.
def window_attention(q, k, v, left):
    cuts = [slice(start, start + left + 1) for start in range(0, q.shape[2], left + 1)]
    parts = [mt.ops.softmax_attention(q[:, :, c], k[:, :, c], v[:, :, c], causal=True) for c in cuts]
    return mt.ops.concat(parts, axis=2)


# %% tags=["mistake"]
# No mask within a chunk: its tokens see the future, and too far back.
def window_attention(q, k, v, left):
    parts, n = [], q.shape[2]
    for start in range(0, n, left + 1):
        end, first = min(start + left + 1, n), max(0, start - left)
        parts.append(mt.ops.softmax_attention(q[:, :, start:end], k[:, :, first:end], v[:, :, first:end]))
    return mt.ops.concat(parts, axis=2)


# %%
class MyWindow(mt.nn.Module):
    """x (B, N, D) -> (B, N, D): the projections around window_attention, 3 tokens back."""

    def __init__(self, dim, *, heads=2, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (
            mt.nn.Linear(dim, dim, False, rng, dtype=dtype) for _ in range(4)
        )

    def forward(self, x):
        q, k, v = (mt.ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        return self.wo(mt.ops.merge_heads(window_attention(q, k, v, 3)))


print(f"MyWindow has {MyWindow(8).count_parameters()} parameters, as many as softmax attention")


# %%
@exercise("window_attention")
def check_window_attention():
    rng = np.random.default_rng(0)
    for n, left in [(1, 1), (2, 1), (3, 1), (5, 2), (7, 3), (9, 0)]:
        q, k, v = (mt.tensor(rng.standard_normal((1, 1, n, 2))) for _ in range(3))
        answer = window_attention(q, k, v, left)
        assert answer is not None, "window_attention gives nothing back yet: return a tensor (B, H, N, d)"
        words, answer = f"{n} tokens, left={left}", answer.numpy()
        assert answer.shape == (1, 1, n, 2), f"{words}: the shape is {answer.shape}, not {(1, 1, n, 2)}"
        i, j = np.arange(n)[:, None], np.arange(n)
        due = mt.ops.softmax_attention(q, k, v, mask=(j <= i) & (i - j <= left)).numpy()
        for t in range(n):
            a, b = answer[0, 0, t].round(4), due[0, 0, t].round(4)
            assert np.abs(a - b).max() <= 1e-3, f"{words}: at token {t} your answer is {a}, expected {b}"
    counted = []
    for n in (256, 512):
        q, k, v = (mt.zeros((1, 1, n, 8)) for _ in range(3))
        with mt.profile() as p:
            window_attention(q, k, v, 7)
        counted.append(p.flops)
    ratio = counted[1] / counted[0]
    words = (
        f"256 tokens cost {counted[0]:,} operations and 512 cost {counted[1]:,}, {ratio:.1f} times as many"
    )
    assert ratio <= 2.2, f"the values are right, but {words}; a window should cost twice as many"
    check_variant(MyWindow, kind="token_mixer", claims=("causal", "batch_independent"), examples=NOTEBOOK)


# %% [markdown]
# ## 4. Ask the content: hashing
#
# A window decides by place. But the softmax puts its weight on keys that point in the direction of the
# query, wherever they stand. **Locality-sensitive hashing** finds these without comparing all pairs: it
# gives each vector a *bucket* such that similar vectors often share one. Draw random directions $r_1 \ldots
# r_{b/2}$, and take the direction, or the opposite of one, that fits best:
#
# $$\mathrm{bucket}(x) = \mathrm{argmax} \left[ x R, \; -x R \right] \qquad R = [r_1, \ldots, r_{b/2}]$$
#
# Reformer makes queries and keys the same vector, sorts tokens by bucket, and lets each attend within its
# chunk of the sorted list. In two dimensions buckets are sectors of the circle. Below are three drawings of
# $b = 6$ buckets; the two black points are neighbours.

# %%
angles, pair = np.radians(np.arange(0, 360, 6)), np.radians([62, 80])
circle, points = (np.stack([np.cos(a), np.sin(a)], axis=-1) for a in (angles, pair))
palette = np.array([BLUE, ORANGE, GREEN, PINK, YELLOW, SKY])
picture = Picture(7.5, 2.7)
for round_, axes in enumerate(picture.subplots(1, 3)):
    directions = np.random.default_rng(round_).standard_normal((2, 3))
    found = [np.argmax(np.concatenate([x @ directions, -x @ directions], -1), -1) for x in (circle, points)]
    axes.scatter(*circle.T, c=palette[found[0]], s=22)
    axes.scatter(*points.T, color="black", s=30, zorder=3)
    axes.set_title(
        f"round {round_ + 1}: the pair is {'together' if np.ptp(found[1]) == 0 else 'apart'}", fontsize=9
    )
    axes.set(aspect="equal", xticks=[], yticks=[])
picture

# %% [markdown]
# Sometimes a border falls between neighbours. So hash several times, with other directions, and attend to
# all that any round finds.
#
# ### Exercise 5: the bucket
#
# Write the formula for many vectors at once. Buckets are numbered 0 to $b - 1$ in the order of the formula.


# %%
def bucket(x, directions):
    """Integers (N,), the bucket of each vector of x (N, d). directions: (d, b / 2), one in each column."""
    # BEGIN SOLUTION
    p = x @ directions
    return np.argmax(np.concatenate([p, -p], axis=-1), axis=-1)
    # END SOLUTION


# %% tags=["mistake"]
# Puts a vector and its opposite into one bucket.
def bucket(x, directions):
    return np.argmax(np.abs(x @ directions), axis=-1)


# %% tags=["mistake"]
# Leaves out the opposite directions.
def bucket(x, directions):
    return np.argmax(x @ directions, axis=-1)


# %% tags=["mistake"]
# Interleaves each direction with its opposite.
def bucket(x, directions):
    p = x @ directions
    return np.argmax(np.stack([p, -p], axis=-1).reshape(len(x), -1), axis=-1)


# %%
@exercise("bucket")
def check_bucket():
    directions = np.eye(2)
    for vector, due in [([1, 0], 0), ([0, 3], 1), ([-2, 1], 2), ([0.5, -1], 3)]:
        answer = bucket(np.array([vector], float), directions)
        assert answer is not None, "bucket gives nothing back yet: return one integer for each vector"
        assert np.shape(answer) == (1,), f"for one vector the shape is {np.shape(answer)}, not (1,)"
        words = f"directions (1, 0) and (0, 1): the bucket of {vector} is {answer[0]}, expected {due}"
        assert answer[0] == due, words
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(5)
    x, directions = rng.standard_normal((50, 8)), rng.standard_normal((8, 5))
    fits = np.concatenate([directions, -directions], axis=1).T @ x.T
    wrong = np.flatnonzero(bucket(7 * x, directions) != fits.argmax(axis=0)).tolist()
    assert not wrong, f"50 vectors of width 8, 10 buckets: those of vectors {wrong[:5]} are wrong"
    # END HIDDEN TESTS


# %% [markdown]
# How many rounds are enough? Plant 64 pairs of vectors of width 16 with a given cosine among 128 tokens,
# and ask the library which tokens find their partner. (The values are the columns of the unit matrix, so
# the output of the layer *is* its attention weights.) If one round succeeds with probability $p$, then $r$
# independent rounds should succeed with $1 - (1 - p)^r$: the dotted lines.

# %%
from minitf.attention.reformer_lsh import hashed, lsh_attention


def recall(cosine, rounds, pairs=64, d=16, trials=6):
    """Shares: partners found; tokens looked at; found of partners that come later, that came earlier."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(trials):
        a, b = rng.standard_normal((2, pairs, d))
        a /= np.linalg.norm(a, axis=-1, keepdims=True)
        b -= (a * b).sum(axis=-1, keepdims=True) * a
        b *= np.sqrt(1 - cosine**2) / np.linalg.norm(b, axis=-1, keepdims=True)
        order = rng.permutation(2 * pairs)
        q = mt.tensor(np.concatenate([a, cosine * a + b])[order][None, None])
        partner = np.argsort(order)[(order + pairs) % (2 * pairs)]
        rotations = mt.tensor(rng.standard_normal((1, rounds, d, 8)))
        buckets = hashed(q, rotations, np.array([8]))
        visible, values = np.ones((1, 2 * pairs), bool), mt.eye(2 * pairs, dtype="float64")[None, None]
        weights = lsh_attention(q, values, buckets, visible, chunk=8).numpy()[0, 0]
        found, later = weights[np.arange(2 * pairs), partner] > 0, partner > np.arange(2 * pairs)
        hits.append([found.mean(), (weights > 0).mean(), found[later].mean(), found[~later].mean()])
    return np.mean(hits, axis=0)


rounds, recalls = [1, 2, 4, 8], {}
picture = Picture(5.5, 2.8)
axes = picture.subplots()
for color, cosine in zip([BLUE, GREEN, ORANGE], (0.95, 0.8, 0.5)):
    recalls[cosine], looked, later, earlier = np.array([recall(cosine, r) for r in rounds]).T
    print(
        f"cosine {cosine}: one round finds {earlier[0]:.0%} of earlier and {later[0]:.0%} of later partners"
    )
    axes.plot(rounds, recalls[cosine], "o-", color=color, label=f"cosine {cosine}")
    axes.plot(rounds, 1 - (1 - recalls[cosine][0]) ** np.array(rounds), ":", color=color)
axes.plot(rounds, looked, "--", color=GREY, label="share of tokens looked at")
axes.set(xlabel="rounds", ylabel="partner found", ylim=(0, 1.05), xscale="log")
axes.set_xticks(rounds, rounds)
axes.minorticks_off()
axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
picture

# %% [markdown]
# More rounds find more, and alike vectors are found first. The less alike, the closer the curve comes to
# the grey line, which is looking at random. Hashing finds what is *similar*. Keep that in mind.
#
# The law nearly holds for the two lower curves. The upper one stays below it: rounds are not quite
# independent. Within a bucket tokens are sorted by place, and a token looks at its own chunk and the one
# *before*. In a crowded bucket a partner that comes later lies ahead, in every round anew.
#
# ## 5. Two tasks whose answer is far away
#
# Is reach all that matters? Train models on two tasks with 48 tokens.
#
# - **Announcement.** One token, anywhere, carries one of eight symbols; the others are blank and all alike.
#   Every token must name the symbol. Guessing is right in one of eight cases.
# - **Twins.** The tokens are 24 pairs in random places. The two of a pair have the same random vector, new
#   in each sequence, and each holds one of four symbols. Every token must name the symbol of its twin.
#   Guessing: one of four.
#
# The model is small and without positions: two layers of the pattern unless said, with residual connections
# and norms, one head, 100 steps. The same for all, and one seed. The learning rate is one with which full
# attention learns both tasks.


# %%
def announcement(rng, size):
    """Tokens (size, 48, 16), the symbols to name (size, 48), and places from the announcement (size, 48)."""
    place, symbol = rng.integers(0, 48, size), rng.integers(0, 8, size)
    x = np.zeros((size, 48, 16), "float32")
    x[:, :, 8], x[np.arange(size), place] = 1, np.eye(16)[symbol]
    return x, np.repeat(symbol[:, None], 48, axis=1), np.arange(48) - place[:, None]


def twins(rng, size):
    """The same three for the twins: 12 numbers say who, 4 which symbol."""
    who, symbol = rng.standard_normal((size, 24, 12)), rng.integers(0, 4, (size, 48))
    who *= np.sqrt(12) / np.linalg.norm(who, axis=-1, keepdims=True)
    place = np.argsort(rng.random((size, 48)), axis=-1)
    row, other = np.arange(size)[:, None], np.roll(place, 24, axis=1)
    x, y, gap = np.zeros((size, 48, 16), "float32"), np.zeros((size, 48), int), np.zeros((size, 48), int)
    x[row, place] = np.concatenate([np.concatenate([who, who], axis=1), 2 * np.eye(4)[symbol]], axis=-1)
    y[row, other], gap[row, other] = symbol, other - place
    return x, y, gap


for task in (announcement, twins):
    x, y, gap = task(np.random.default_rng(9), 1)
    asked, source = 40, 40 - gap[0, 40]
    print(f"{task.__name__}: token {asked} must name symbol {y[0, asked]}, which stands at token {source}")


# %%
class Model(mt.nn.Module):
    def __init__(self, name, depth=2, dim=16, seed=0, **more):
        rng = np.random.default_rng(seed)
        self.embed, self.read = mt.nn.Linear(16, dim, False, rng), mt.nn.Linear(dim, 8, False, rng)
        self.layers = [mt.build(name, dim=dim, heads=1, seed=rng, **more) for _ in range(depth)]
        self.norms = [mt.build("rmsnorm", dim=dim) for _ in range(depth)]

    def forward(self, x):
        x = self.embed(x)
        for layer, norm in zip(self.layers, self.norms):
            x = x + layer(norm(x))
        return self.read(x)


def learn(task, name, depth=2, only_after=False, steps=100, **more):
    """A trained model. With only_after, for causal layers, only tokens after the announcement are asked."""
    model, rng = Model(name, depth, **more), np.random.default_rng(0)
    optimizer = mt.train.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        x, y, gap = task(rng, 16)
        y = np.where(gap < 0, -1, y) if only_after else y
        loss = mt.ops.cross_entropy(model(mt.tensor(x)), y, ignore=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def judge(model, task):
    """Which answers are right (256, 48), and the gaps, on sequences that were not trained on."""
    x, y, gap = task(np.random.default_rng(99), 256)
    with mt.no_grad():
        return model(mt.tensor(x)).numpy().argmax(axis=-1) == y, gap


def by_distance(right, gap, only_after=False):
    return np.array([right[gap == d if only_after else abs(gap) == d].mean() for d in range(40)])


bidirectional = dict(left=4, causal=False)
walkers = {
    depth: judge(learn(announcement, "sliding_window", depth, **bidirectional), announcement)
    for depth in (1, 2, 3)
}
curves = {depth: by_distance(*result) for depth, result in walkers.items()}
farthest = {depth: int(np.flatnonzero(curve > 0.5).max()) for depth, curve in curves.items()}
print("the farthest announcement that most tokens get right, by depth:", farthest)

# %% [markdown]
# Windows of 4 tokens to each side, with one, two and three layers. **Predict** the curves of accuracy
# against the distance to the announcement before you look. Then predict three others with two layers: Big
# Bird, a causal window of 5 with 2 sinks, and Reformer.

# %%
bird = judge(learn(announcement, "bigbird", block=4, random=1), announcement)
sinks = judge(learn(announcement, "attention_sinks", only_after=True, window=5, sinks=2), announcement)
lsh = judge(learn(announcement, "reformer_lsh", chunk=8, rounds=2), announcement)
others = {
    "bigbird": (by_distance(*bird), BLUE),
    "attention_sinks": (by_distance(*sinks, only_after=True), GREEN),
    "reformer_lsh": (by_distance(*lsh), PINK),
}
picture = Picture(8, 2.9)
left, right = picture.subplots(1, 2, sharey=True)
for color, (depth, curve) in zip([SKY, ORANGE, "black"], curves.items()):
    left.plot(curve, ".-", color=color, label=f"{depth} layer{'s' * (depth > 1)}")
    left.axvline(4 * depth + 0.5, color=color, linestyle=":")
for name, (curve, color) in others.items():
    right.plot(curve, ".-", color=color, label=name)
for axes, title in ((left, "windows (dotted: where the reach ends)"), (right, "two layers")):
    axes.axhline(1 / 8, color=GREY, linestyle="--", label="guessing")
    axes.set(xlabel="tokens from the announcement", ylim=(0, 1.05))
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7, loc="upper right", bbox_to_anchor=(1, 0.93))
left.set_ylabel("accuracy")
picture

# %%
sink_right, gap = sinks
in_sink = np.arange(48) - gap < 2
told = {
    "in a sink": sink_right[(gap > 8) & in_sink].mean(),
    "elsewhere": sink_right[(gap > 8) & ~in_sink].mean(),
}
for words, accuracy in told.items():
    print(f"attention_sinks, more than 8 tokens away, announcement {words}: accuracy {accuracy:.2f}")

# %% [markdown]
# The window fails **exactly** where the receptive field ends, and not one token earlier. Big Bird's global
# blocks carry the announcement to everyone. Sinks help only where the news stands in a sink: they keep a
# softmax steady in a long stream, they are no memory of what came between. (Their curve rises because what
# is far back is more often in a sink.)
#
# Reformer is the surprise: its pattern may connect any two tokens, and it fails even close by. A blank
# token asks "who is like me?", and finds other blanks. So is hashing useless? Now the twins.

# %%
choices = {
    "softmax_attention": dict(causal=False),
    "sliding_window": bidirectional,
    "bigbird": dict(block=4, random=1),
    "reformer_lsh": dict(chunk=8, rounds=2),
}
matched = {name: learn(twins, name, **more) for name, more in choices.items()}
scores = {name: [0.0, judge(model, twins)[0].mean()] for name, model in matched.items()}
scores["softmax_attention"][0] = judge(learn(announcement, "softmax_attention", causal=False), announcement)[
    0
].mean()
for name, result in (("sliding_window", walkers[2]), ("bigbird", bird), ("reformer_lsh", lsh)):
    scores[name][0] = result[0].mean()
# Evaluate the hashing model, trained with 2 rounds, with other numbers of rounds.
with_rounds = []
for count in rounds:
    for layer in matched["reformer_lsh"].layers:
        shape = (1, count, *layer.rotations.shape[2:])
        layer.rotations.data = np.random.default_rng(8).standard_normal(shape).astype("float32")
    with_rounds.append(judge(matched["reformer_lsh"], twins)[0].mean())
picture = Picture(8, 2.9)
left, right = picture.subplots(1, 2, sharey=True, width_ratios=(2, 1))
for k, (task, color, chance) in enumerate([("announcement", BLUE, 1 / 8), ("twins", ORANGE, 1 / 4)]):
    bars = left.bar(
        np.arange(4) + 0.38 * k - 0.19, [s[k] for s in scores.values()], 0.36, color=color, label=task
    )
    left.bar_label(bars, fmt="%.2f", fontsize=8)
    left.axhline(chance, color=color, linestyle="--", linewidth=1)
left.set_xticks(range(4), list(scores), fontsize=8)
left.set(ylabel="accuracy", ylim=(0, 1.3))
left.set_title("all tokens (dashed: guessing)", fontsize=9)
left.legend(fontsize=8, ncols=2, loc="upper center")
right.plot(rounds, with_rounds, "o-", color=ORANGE)
right.set(xlabel="rounds when evaluated", xscale="log")
right.set_title("reformer_lsh on twins, trained with 2", fontsize=9)
right.set_xticks(rounds, rounds)
right.minorticks_off()
picture

# %% [markdown]
# The ranks turn around. Hashing is made for twins: it finds what is alike, at any distance. Big Bird,
# perfect before, now misses many. *In principle* two layers connect all its tokens. Our guess: 24 messages
# do not fit through a handful of global tokens. **Reach is necessary, and not sufficient**: what also
# counts is how much must pass, and whether the right token can be found.
#
# One more figure for the road, the number of keys that NSA reads to write one token, with the sizes of its
# paper: summaries of 32 tokens at stride 16, 16 selected blocks of 64 tokens, and a window of 512.

# %%
context = 65_536
read = (context - 32) // 16 + 16 * 64 + 512
print(f"at {context:,} tokens: {read:,} keys instead of {context:,}, {context / read:.1f} times fewer")

# %%
from IPython.display import Markdown

slopes = {name: one.slopes[0] for name, one in costs.items()}
rows = [
    (
        "*Longformer* (arXiv:2004.05150), 3.1: windows cost linear in $N$, and stacked layers have a large "
        "receptive field, layers times window",
        f"power of $N$ {slopes['sliding_window']:.2f}; trained windows of 4 with 1, 2, 3 layers answer up to "
        f"{farthest[1]}, {farthest[2]}, {farthest[3]} tokens away",
    ),
    (
        "*Big Bird* (arXiv:2007.14062), 2: random graphs have short paths, and global tokens connect all",
        f"diameter for 256 tokens: window {diameters['window'][-1]}, window and random "
        f"{diameters['window and random'][-1]}, Big Bird {diameters['bigbird'][-1]}; but on the twins "
        f"it reaches {scores['bigbird'][1]:.2f} where full attention has "
        f"{scores['softmax_attention'][1]:.2f}",
    ),
    (
        "*Reformer* (arXiv:2001.04451), 2: cost $N \\log N$; more rounds of hashing miss less, and a model "
        "may be evaluated with more rounds than it was trained with",
        f"power {slopes['reformer_lsh']:.2f}, the sort is {sorting / p.flops:.1%}; recall at cosine 0.95 "
        f"from {recalls[0.95][0]:.2f} (1 round) to {recalls[0.95][-1]:.2f} (8); trained with 2, "
        "evaluated with 1, 2, 4, 8: " + ", ".join(f"{a:.2f}" for a in with_rounds),
    ),
    (
        "*StreamingLLM* (arXiv:2309.17453): sinks keep a trained language model stable in endless streams",
        "not tested: it needs a language model that was trained with full attention. What the pattern alone "
        f"gives: beyond the reach, accuracy {told['in a sink']:.2f} for news in a sink and "
        f"{told['elsewhere']:.2f} for other news",
    ),
    (
        "*Native Sparse Attention* (arXiv:2502.11089): decodes 64k tokens 11.6 times faster",
        f"not timed; keys read for a token: {context / read:.1f} times fewer. A whole forward pass still has "
        f"power {slopes['nsa']:.2f} at {n_tokens[-1]} tokens, and rising",
    ),
    (
        "*Long Range Arena* (arXiv:2011.04006): no efficient attention is the best on all tasks",
        "announcement and twins: "
        + "; ".join(f"{name} {a:.2f} and {b:.2f}" for name, (a, b) in scores.items())
        + ". Two toy tasks and one seed; full attention is at or near the top of both",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - Train `nsa` and `combiner_fixed` on the announcement (both are causal). Which of NSA's three branches
#   carries the news? Close the others by the bias of `wg`.
# - Give Big Bird larger blocks, more width or more random blocks. Which of these helps with the twins, and
#   what does each cost?
# - Dilate the windows: `dilation=1` in the first layer and `dilation=8` in the second. Draw the receptive
#   field first, with its holes, then train on the announcement. Are the failures where the holes are?
# - Give the blank tokens of the announcement their positions. Can Reformer learn to look by place?
# - `mt.tasks.Copy` wants 16 symbols again, 16 places later. Replace the second half by the separator, add
#   learned positions, and find the smallest window that copies with two layers.
#
# ## Where to go next
#
# Read `minitf/attention/sliding_window.py` and compare its `banded` with yours, then `bigbird.py`, where
# blocks are gathered, and `reformer_lsh.py`, where they are sorted. `minitf plot bigbird` draws the pattern
# and the cost of any variant. Lesson `06_unroll_linear_attention` takes the other road, where nobody is
# left out: it turns Performer's kind of attention into a recurrent network.
