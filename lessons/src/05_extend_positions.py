# %% [markdown]
# # Extend positions: train short, test long
#
# **What you will do.** Tell attention where its tokens stand, in five ways, and look at what each does to the
# scores. Then train small models on short sequences and test them on longer ones. Most break; you will see
# how, and mend one of them after training.
#
# **What you will learn.** Sinusoidal, learned and rotary positions, linear biases, and no positions at all;
# why a shift of positions is a rotation; what a model learns that has seen a single length; which schemes
# survive longer texts, and at what price.
#
# **What you need.** Attention with a causal mask (lesson `02_build_attention`), sine and cosine, matrix
# products. Run the cells from top to bottom. The five exercises check themselves.
#
# **Variants.** `sinusoidal_pos`, `learned_pos`, `rope`, `alibi`, `nope`

# %%
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf.testing import NOTEBOOK, check_variant, exercise
from minitf.viz import Picture
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
np.set_printoptions(precision=3, suppress=True)
SCHEMES = ["sinusoidal_pos", "learned_pos", "rope", "alibi", "nope"]
COLOUR = dict(zip(SCHEMES, (ORANGE, "#CC79A7", BLUE, GREEN, GREY)))
for name in SCHEMES:
    print(f"{name:15} {mt.build(name, dim=32).card.title}")

# %% [markdown]
# ## 1. How much does attention know without positions?
#
# Attention is a weighted sum over tokens, and a sum has no order. A causal mask is all the order there is: a
# token sees those before it. Below we shuffle the past of the last token, and look how far its output moves.
# **Predict:** does one layer notice? Do two?

# %%
rng = np.random.default_rng(0)
x = mt.tensor(rng.standard_normal((1, 12, 16)))
past = [*rng.permutation(11), 11]
first, second = (mt.build("softmax_attention", dim=16, seed=s, dtype="float64") for s in (1, 2))
one = np.abs((first(x) - first(x[:, past])).numpy()[0, -1]).max()
two = np.abs((second(first(x)) - second(first(x[:, past]))).numpy()[0, -1]).max()
print(f"one layer:  the last output moves by {one:.1e}")
print(f"two layers: the last output moves by {two:.1e}")

# %% [markdown]
# One layer sees a bag of tokens. Two layers see some order, because the outputs of the first already depend
# on *how many* tokens each of them saw. That is the idea of **NoPE** ("no positional encoding"): a causal
# mask lets a model count, so perhaps nothing else is needed.
#
# ### Exercise 1: find your place without positions
#
# Write positions by hand with one causal head that has none. `attend(q, k, v)` takes arrays of shape (n, d)
# and gives (n, d). Token 0 marks the beginning, so its value may differ from the others. Choose queries and
# keys such that every token attends to all visible tokens alike. Then one value tells each token its place.


# %%
def place(attend, n):
    """The positions 0 .. n-1 as an array (n,), from one call of attend(q, k, v)."""
    # BEGIN SOLUTION
    flat, begin = np.zeros((n, 1)), np.zeros((n, 1))
    begin[0] = 1.0
    # Token t sees t + 1 tokens, one of which has the value 1.
    return 1.0 / attend(flat, flat, begin)[:, 0] - 1.0
    # END SOLUTION


# %% tags=["mistake"]
# All tokens have the value 1: the mean is 1 everywhere.
def place(attend, n):
    flat, ones = np.zeros((n, 1)), np.ones((n, 1))
    return 1.0 / attend(flat, flat, ones)[:, 0] - 1.0


# %% tags=["mistake"]
# Gives the number of visible tokens, which is one more than the position.
def place(attend, n):
    flat, begin = np.zeros((n, 1)), np.zeros((n, 1))
    begin[0] = 1.0
    return 1.0 / attend(flat, flat, begin)[:, 0]


# %%
@exercise("place")
def check_place():
    calls = []

    def attend(q, k, v):
        calls.append(1)
        return mt.ops.softmax_attention(*(a[None, None] for a in (q, k, v)), causal=True)[0, 0]

    for n in (1, 2, 3, 50):
        answer = place(attend, n)
        assert answer is not None, "place gives nothing back yet: return an array of n positions"
        assert np.shape(answer) == (n,), f"for {n} tokens the shape is {np.shape(answer)}, expected ({n},)"
        error = np.abs(answer - np.arange(n)).max()
        words = f"for {n} tokens the places are {np.asarray(answer)[:4]}, expected {np.arange(n)[:4]}"
        assert error <= 1e-9, f"{words} (the first four at most)"
    assert len(calls) == 4, f"for 4 lengths attend was called {len(calls)} times, expected once for each"


# %% [markdown]
# ## 2. Three doors for a position
#
# A scheme can act in three places. In `minitf` they are three methods:
#
# - `embed`: add a vector to each **token**, before the first layer (sinusoidal, learned);
# - `rotate`: turn each **query** and **key**, in every layer (RoPE);
# - `bias`: add a number to each **score**, in every layer (ALiBi).
#
# To see what a scheme does by itself, put the same vector at all of 48 positions. Without positions all
# scores are then equal. Above: the scores of all pairs. Below: the scores of two queries, against the
# **distance** to the key. If the two curves lie on each other, the scheme knows distances only. The learned
# table starts as small noise; we magnify it here.


# %%
def scores(name, n=48, d=32):
    """Scores (n, n) of the scheme for n equal tokens that are their own queries and keys."""
    scheme, places = mt.build(name, dim=d, heads=1, context=n), np.arange(n)
    if name == "learned_pos":
        scheme.weight.data *= 35
    token = np.random.default_rng(3).standard_normal(d).astype("float32")
    x = scheme.embed(mt.tensor(np.broadcast_to(token, (1, n, d))), places)
    x = scheme.rotate(x.reshape((1, 1, n, d)), places)
    bias = scheme.bias(places, places)
    return ((x @ x.mT).numpy() / np.sqrt(d) + (0 if bias is None else 20 * bias))[0, 0]


picture = Picture(9.6, 4)
rows = picture.subplots(2, 5)
for (top, low), name in zip(rows.T, SCHEMES):
    s = scores(name)
    # Equal scores would be white: give them a range.
    spread = 1.0 if name == "nope" else 0.0
    top.imshow(s, cmap="Blues", vmin=s.min() - spread, vmax=s.max() + spread)
    top.set_title(name, fontsize=10)
    for i, colour in ((47, BLUE), (24, ORANGE)):
        low.plot(i - np.arange(i + 1), s[i, : i + 1], color=colour, linewidth=3.5 if i == 47 else 1.2)
    low.set_xlabel("distance")
    if name == "nope":
        low.set_ylim(s[0, 0] - 1, s[0, 0] + 1)
    if name == "sinusoidal_pos":
        low.legend(["query 47", "query 24"], fontsize=7)
rows[0, 0].set(ylabel="query", xlabel="key")
rows[1, 0].set_ylabel("score")
picture

# %% [markdown]
# (ALiBi's bias is drawn 20 times as large as it is.) RoPE, ALiBi and NoPE have diagonals of one colour:
# **relative** schemes. What is added to tokens is **absolute**: the score of $(x + p_i)$ and $(x + p_j)$ has
# the terms $x \cdot p_i$ and $x \cdot p_j$, which depend on where a token stands, not only on how far away.
#
# ## 3. Sinusoidal: a shift is a rotation
#
# Position $n$ gets $D/2$ pairs of numbers, like hands of clocks that turn at different speeds $w_j$:
#
# $$p_n = (\sin n w_0, \cos n w_0, \sin n w_1, \cos n w_1, \ldots) \qquad w_j = 10000^{-2j/D}$$
#
# Moving on by $k$ positions turns every hand by the angle $k w_j$, wherever it stood. So
# $p_{n+k} = R_k \, p_n$, with one matrix $R_k$ for all $n$. And the product of two such vectors,
# $p_n \cdot p_m = \sum_j \cos((n-m) w_j)$, depends on the distance only.

# %%
table = mt.build("sinusoidal_pos", dim=32)(mt.tensor(np.zeros((1, 100, 32))), np.arange(100)).numpy()[0]
picture = Picture(8, 2.6)
left, right = picture.subplots(1, 2)
image = left.imshow(table.T, cmap="RdBu", aspect="auto")
picture.colorbar(image, ax=left)
left.set(xlabel="position n", ylabel="coordinate", title="the table")
for i, colour in ((99, BLUE), (49, ORANGE)):
    right.plot(
        i - np.arange(i + 1), table[: i + 1] @ table[i], color=colour, label=f"n = {i}", linewidth=i / 30
    )
right.set(xlabel="distance n - m", title="product of two positions")
right.legend(fontsize=8)
picture

# %% [markdown]
# ### Exercise 2: the matrix of a shift
#
# Build $R_k$. Each pair has a block of $2 \times 2$ on the diagonal. The addition theorems give it:
# $\sin(a + b) = \sin a \cos b + \cos a \sin b$ and $\cos(a + b) = \cos a \cos b - \sin a \sin b$.


# %%
def shift_matrix(k, dim):
    """R (dim, dim), float64, with R @ p[n] = p[n + k] for every n; dim is even."""
    # BEGIN SOLUTION
    r = np.zeros((dim, dim))
    for j in range(dim // 2):
        angle = k * 10000.0 ** (-2 * j / dim)
        cos, sin = np.cos(angle), np.sin(angle)
        r[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = [[cos, sin], [-sin, cos]]
    return r
    # END SOLUTION


# %% tags=["mistake"]
# Turns the wrong way.
def shift_matrix(k, dim):
    r = np.zeros((dim, dim))
    for j in range(dim // 2):
        angle = k * 10000.0 ** (-2 * j / dim)
        cos, sin = np.cos(angle), np.sin(angle)
        r[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = [[cos, -sin], [sin, cos]]
    return r


# %% tags=["mistake"]
# The speeds fall half as fast as they should.
def shift_matrix(k, dim):
    r = np.zeros((dim, dim))
    for j in range(dim // 2):
        angle = k * 10000.0 ** (-j / dim)
        cos, sin = np.cos(angle), np.sin(angle)
        r[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = [[cos, sin], [-sin, cos]]
    return r


# %%
@exercise("shift_matrix")
def check_shift_matrix():
    for dim in (2, 4, 32):
        n = np.arange(60)
        p = mt.build("sinusoidal_pos", dim=dim)(mt.tensor(np.zeros((1, 60, dim))), n).numpy()[0]
        for k in (1, 7):
            r = shift_matrix(k, dim)
            assert r is not None, "shift_matrix gives nothing back yet: return R of shape (dim, dim)"
            assert np.shape(r) == (dim, dim), f"for dim={dim} the shape is {np.shape(r)}"
            moved, words = r @ p[0], f"dim={dim}: R_{k} p_0"
            assert np.abs(moved - p[k]).max() <= 1e-9, f"{words} is {moved[:4]}, expected {p[k][:4]}"
            error = np.abs(p[:-k] @ r.T - p[k:]).max()
            assert error <= 1e-9, f"dim={dim}: R_{k} p_n differs from p_(n+{k}) by {error:.2g} for some n"


# %% [markdown]
# ## 4. RoPE: turn queries and keys instead
#
# If positions are rotations, why add them? **Rotary positions** (RoPE) turn the query at position $i$ by
# $R_i$ and the key at $j$ by $R_j$. Rotations keep lengths, and the score is
#
# $$(R_i q) \cdot (R_j k) = q \cdot R_i^{T} R_j k = q \cdot R_{j-i} \, k$$
#
# The content stays, the absolute positions are gone, and nothing is learned. (Here $R_i$ turns by $+i w_j$.
# The matrix of exercise 2 is its transpose, because there the sine comes first.) In RoPE the pair
# $(a, b) = (x_{2j}, x_{2j+1})$ becomes $(a \cos \theta - b \sin \theta, \; a \sin \theta + b \cos \theta)$
# with the angle $\theta = n w_j$.
#
# ### Exercise 3: rotate
#
# Write it for vectors (N, d) at positions (N,).


# %%
def rotate(x, positions, base=10000.0):
    """x (N, d) with the pairs (2j, 2j+1) turned by positions (N,) times base^(-2j/d)."""
    # BEGIN SOLUTION
    angle = positions[:, None] * base ** (-np.arange(0, x.shape[1], 2) / x.shape[1])
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[:, 0::2], x[:, 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
    # END SOLUTION


# %% tags=["mistake"]
# The sign is wrong: what comes out is no rotation. (Published code had this.)
def rotate(x, positions, base=10000.0):
    angle = positions[:, None] * base ** (-np.arange(0, x.shape[1], 2) / x.shape[1])
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[:, 0::2], x[:, 1::2]
    return np.stack([a * cos - b * sin, a * sin - b * cos], axis=-1).reshape(x.shape)


# %% tags=["mistake"]
# Puts all first coordinates before all second ones.
def rotate(x, positions, base=10000.0):
    angle = positions[:, None] * base ** (-np.arange(0, x.shape[1], 2) / x.shape[1])
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[:, 0::2], x[:, 1::2]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


# %%
@exercise("rotate")
def check_rotate():
    for d, places in ((2, [0]), (2, [1]), (4, [1]), (8, [0, 3, 1000])):
        x = np.arange(1.0, d * len(places) + 1).reshape(-1, d)
        answer = rotate(x, np.array(places))
        assert answer is not None, "rotate gives nothing back yet: return the turned vectors (N, d)"
        assert np.shape(answer) == x.shape, f"x {x.shape} gives shape {np.shape(answer)}"
        expected = mt.ops.rope(x[None, None], np.array(places))[0, 0]
        wrong = np.abs(answer - expected).max(axis=1)
        i = int(np.argmax(~(wrong <= 1e-9)))
        words = f"{x[i]} at position {places[i]} becomes {np.asarray(answer)[i]}, expected {expected[i]}"
        assert wrong.max() <= 1e-9, words
    # BEGIN HIDDEN TESTS
    x = np.random.default_rng(4).standard_normal((5, 6))
    expected = mt.ops.rope(x[None, None], np.arange(5), base=500.0)[0, 0]
    error = np.abs(rotate(x, np.arange(5), base=500.0) - expected).max()
    assert error <= 1e-9, f"with base=500 the largest difference is {error:.2g}"
    # END HIDDEN TESTS


# %% [markdown]
# ### Far means weak?
#
# The RoFormer paper says that scores decay with distance. It proves an upper bound: at distance $m$,
# scores are at most a constant times the mean over $n$ of $|\sum_{j=0}^{n} e^{\mathrm{i} m w_j}|$, where
# $\mathrm{i}$ is the imaginary unit. Let us draw this mean, and beside it the mean size of real scores, for
# random queries and keys. **Predict** the right picture.

# %%
w = 10000.0 ** (-np.arange(0, 64, 2) / 64)
distances = np.arange(0, 250)
bound = np.abs(np.cumsum(np.exp(1j * distances[:, None] * w), axis=1)).mean(axis=1)
q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1000, 64))
sizes = []
for m in distances[::10]:
    turned = mt.ops.rope(q, np.full(1000, m))
    sizes.append(np.abs((turned * k).sum(axis=-1)).mean())
sizes = np.array(sizes)
picture = Picture(8, 2.6)
left, right = picture.subplots(1, 2)
left.plot(distances, bound, color=BLUE)
left.set(xlabel="distance", ylabel="bound", ylim=(0, None), title="the paper's bound")
right.plot(distances[::10], sizes, "o-", color=ORANGE, markersize=3)
right.set(xlabel="distance", ylabel="mean |score|", ylim=(0, 10), title="scores of random q and k")
picture

# %% [markdown]
# The bound falls, the scores do not: a rotated random vector is still a random vector. The decay belongs to
# queries and keys that point the same way, and a trained head may learn others. RoPE does not *make* far
# tokens weak; it lets a head choose distances.
#
# ## 5. ALiBi: pay for distance
#
# **ALiBi** has no vectors at all. Head $h$ of $H$ subtracts a fixed price from every score:
#
# $$s_{ij} \leftarrow s_{ij} - m_h \, |i - j| \qquad m_h = 2^{-8h/H}, \quad h = 1 \ldots H$$
#
# ### Exercise 4: the bias
#
# Write it for positions of queries and keys, which need not start at 0: with a cache, one query at position
# 100 meets 101 keys. $H$ is a power of two.


# %%
def alibi_bias(heads, queries, keys):
    """The bias (heads, Nq, Nk) for positions queries (Nq,) and keys (Nk,)."""
    # BEGIN SOLUTION
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    return -slopes[:, None, None] * np.abs(queries[:, None] - keys)
    # END SOLUTION


# %% tags=["mistake"]
# Counts heads from 0: the first slope is 1.
def alibi_bias(heads, queries, keys):
    slopes = 2.0 ** (-8 * np.arange(heads) / heads)
    return -slopes[:, None, None] * np.abs(queries[:, None] - keys)


# %% tags=["mistake"]
# Rewards distance.
def alibi_bias(heads, queries, keys):
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    return slopes[:, None, None] * np.abs(queries[:, None] - keys)


# %% tags=["mistake"]
# Counts from 0 instead of using the positions.
def alibi_bias(heads, queries, keys):
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    return -slopes[:, None, None] * np.abs(np.arange(len(queries))[:, None] - np.arange(len(keys)))


# %%
@exercise("alibi_bias")
def check_alibi_bias():
    for heads, queries, keys in ((1, [1], [0, 1]), (2, [3], [0, 1, 2, 3]), (8, [5, 6], [0, 6, 9])):
        answer = alibi_bias(heads, np.array(queries), np.array(keys))
        assert answer is not None, "alibi_bias gives nothing back yet: return numbers (heads, Nq, Nk)"
        expected = mt.build("alibi", dim=8, heads=heads).bias(queries, keys)
        words = f"{heads} heads, query positions {queries}, key positions {keys}"
        assert np.shape(answer) == expected.shape, f"{words}: the shape is {np.shape(answer)}"
        error = np.abs(answer - expected).max()
        got, want = np.ravel(answer)[: len(keys)], expected.ravel()[: len(keys)]
        assert error <= 1e-12, f"{words}: head 1 of the first query gets {got}, expected {want}; " + (
            f"the largest difference in all heads is {error:.2g}"
        )


# %% [markdown]
# What does the price do? Take equal scores again. A weight then falls by the factor $e^{-m_h}$ for each
# position: a soft window, wider from head to head. **Predict:** of the attention of the last token, how much
# goes to the latest 32 tokens, if the text grows from 32 to 1024 tokens?

# %%
picture = Picture(8, 2.8)
left, right = picture.subplots(1, 2)
lengths = [32, 64, 128, 256, 512, 1024]
for h in range(8):
    weights = [
        mt.ops.softmax(mt.build("alibi", dim=8, heads=8).bias([n - 1], np.arange(n)))[h, 0] for n in lengths
    ]
    shade = dict(color=(0.0, 0.35 + 0.08 * h, 0.25 + 0.09 * h))
    left.plot(np.arange(128), weights[2][::-1], **shade)
    right.plot(lengths, [row[-32:].sum() for row in weights], "o-", markersize=3, label=f"{h + 1}", **shade)
flat = [32 / n for n in lengths]
right.plot(lengths, flat, "--", color=GREY, label="NoPE")
left.set(yscale="log", ylim=(1e-4, 1), xlabel="distance", ylabel="weight", title="8 heads, 128 tokens")
right.set(xscale="log", xlabel="length", title="share of the latest 32 tokens", ylim=(0, 1.05))
right.set_xticks(lengths, lengths)
right.minorticks_off()
picture.legend(*right.get_legend_handles_labels(), title="head", loc="outside right center", fontsize=8)
picture

# %% [markdown]
# For the first heads a longer text changes nothing: what they see is the same at 32 and at 1024 tokens. That
# is why ALiBi should survive length, and also what it pays: those heads cannot see far.
#
# ## 6. Train on one length
#
# Now models. The task is `Copy`: read $n$ symbols and a separator, then say the symbols again. A model with
# one layer trains on $n = 12$ only. **Predict:** at which other lengths can it copy?


# %%
def train(position, batch, vocabulary, depth, steps, lr=0.014, seed=0):
    """A language model of width 32, trained on what batch(rng) gives: (tokens, targets)."""
    config = mt.models.Config(
        vocabulary, 256, dim=32, depth=depth, ffn="gelu_ffn", ffn_hidden=32, tied=False, bias=False,
        position=position,
    )  # fmt: skip
    model, rng = mt.models.LanguageModel(config, seed=seed), np.random.default_rng(seed)
    optimizer = mt.train.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        optimizer.lr = lr * min((step + 1) / 30, 1 - step / steps)
        loss = model.loss(*batch(rng))
        optimizer.zero_grad()
        loss.backward()
        mt.train.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
    return model


def copies(n, size, rng):
    """`size` samples of Copy with n of 16 symbols; targets that do not count are -1."""
    x, y, counts = mt.tasks.Copy(n, 16).sample(rng, size)
    return x, np.where(counts > 0, y, mt.models.IGNORE)


def accuracies(model, lengths):
    return [model.accuracy(*copies(n, 64, np.random.default_rng(1000 + n))) for n in lengths]


print("\n".join(f"{name}: {row[0]}" for name, row in zip("xy", copies(4, 1, np.random.default_rng(0)))))

# %%
tried = list(range(2, 21))
fixed = {name: train(name, lambda rng: copies(12, 32, rng), 17, 1, 90) for name in ("learned_pos", "rope")}
one_length = {name: accuracies(model, tried) for name, model in fixed.items()}
picture = Picture(6, 2.8)
axes = picture.subplots()
for name, values in one_length.items():
    axes.plot(tried, values, "o-", color=COLOUR[name], label=name)
axes.axvline(12, color=GREY, linestyle="--")
axes.axhline(1 / 16, color=GREY, linewidth=0.8, label="chance")
axes.set(xlabel="symbols n (dashed: the only one in training)", ylabel="accuracy", xticks=tried[::2])
axes.legend(fontsize=8)
picture

# %% [markdown]
# Perfect at 12, and useless at 11 and at 13. Nobody taught the models to copy: with one length, "say what
# stood 12 places back" fits the data just as well. (The table gets a part of the shortest ones: it names one
# of the few symbols in sight.) But why does RoPE know $n = 6$? Ask where its heads look.

# %%
picture = Picture(8, 2.5)
panels = picture.subplots(1, 3, sharey=True)
for axes, n in zip(panels, (12, 16, 6)):
    x, _ = copies(n, 64, np.random.default_rng(0))
    weights = fixed["rope"].attention_maps(x)[0].mean(axis=(0, 1))
    reach = np.arange(0, min(2 * n, 21))
    found = [np.mean([weights[t, t - m] for t in range(max(n, m), 2 * n)]) for m in reach]
    axes.bar(reach, found, color=BLUE)
    for turn in (1, 2, 3):
        axes.axvline(2 * np.pi * turn, color=ORANGE, linestyle="--", linewidth=0.8)
    axes.set(xlabel="distance of the key", title=f"n = {n}", xlim=(-1, 21), ylim=(0, 1))
panels[0].set_ylabel("mean attention weight")
picture

# %% [markdown]
# The fastest pair of RoPE turns by 1 radian per token: once around in $2 \pi = 6.28$ tokens (orange). A head
# that wants distance 12 hears echoes at 6 and at 18. With $n = 6$ no token has another 12 places back, so the
# echo at 6 is the loudest that is left, and it happens to be right. At $n = 16$ the head still looks 12 back,
# and is wrong.
#
# ## 7. Train on many lengths
#
# So show lengths 1 to 6, and test up to 16. Two layers now: one to find out where the model is, one to fetch.
# All five schemes get equal sizes, steps and seeds.

# %%
seen, tested = 6, [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16]
many_lengths = {}
for name in SCHEMES:
    model = train(name, lambda rng: copies(rng.integers(1, seen + 1), 64, rng), 17, 2, 180)
    many_lengths[name] = dict(zip(tested, accuracies(model, tested)))
    line = "  ".join(f"{n}: {many_lengths[name][n]:.2f}" for n in (4, 6, 7, 8, 12))
    print(f"{name:15} accuracy at n = {line}")

# %%
picture = Picture(6.4, 3)
axes = picture.subplots()
for name, found in many_lengths.items():
    axes.plot(tested, list(found.values()), "o-", color=COLOUR[name], label=name, markersize=4)
axes.axvspan(0.5, seen + 0.5, color=GREY, alpha=0.15, linewidth=0)
axes.set(
    xlabel="symbols n (shaded: lengths in training)", ylabel="accuracy", ylim=(0, 1.05), xlim=(0.5, 16.5)
)
axes.legend(fontsize=8)
picture

# %% [markdown]
# Within two symbols the order turns around. The schemes that *add* positions are ahead at 6, and fall off a
# cliff one symbol later. NoPE and ALiBi learn slowly here (180 steps are few), but hardly notice the edge:
# their curves go down evenly, through it. What they learned is not exact, but it is not tied to the lengths
# in training. RoPE starts as low as ALiBi and falls like the schemes that add: at 7 and 8 it is behind the
# sinusoids.
#
# For the learned table the cliff is no surprise: in training no separator stood at position 7, and rows from
# 12 on are untrained noise. The sinusoids are defined everywhere, and fall as well: a formula does not help a
# model that never saw its values.
#
# ## 8. Text: is the far past worth anything?
#
# Copying needs far tokens. The ALiBi paper's claim is about text, where near letters tell the most. Train on
# windows of 32 characters of *Moby-Dick*, one layer, and score the **same** 16 characters at the end of
# windows from 32 to 128. A model that can use more context gets better, one that ignores it stays equal.
# **Predict** the four curves.

# %%
text = mt.tasks.load_moby()
ids = np.asarray(mt.tasks.CharTokenizer.from_text(text).encode(text))
data = mt.train.TextData(ids, 32, validation=0.05)
ends = np.linspace(200, len(data.validation_ids) - 2, 64).astype(int)
windows = [32, 48, 64, 96, 128]


def last_sixteen(model, n):
    """The loss in nats on the same characters, at the end of windows of n."""
    x = np.stack([data.validation_ids[e - n : e] for e in ends])
    y = np.full(x.shape, mt.models.IGNORE)
    y[:, -16:] = np.stack([data.validation_ids[e - 15 : e + 1] for e in ends])
    with mt.no_grad():
        return model.loss(x, y).item()


readers = {}
for name in ("sinusoidal_pos", "rope", "alibi", "nope"):
    readers[name] = train(name, lambda rng: data.batch(rng, 16), ids.max() + 1, 1, 160, lr=0.01)
losses = {name: [last_sixteen(model, n) for n in windows] for name, model in readers.items()}
for name, found in losses.items():
    print(f"{name:15}", "  ".join(f"{n}: {loss:.2f}" for n, loss in zip(windows, found)))

# %%
picture = Picture(6, 2.8)
axes = picture.subplots()
for name, found in losses.items():
    axes.plot(windows, found, "o-", color=COLOUR[name], label=name, markersize=4)
axes.axvline(32, color=GREY, linestyle="--")
axes.set(xlabel="characters in the window (dashed: training)", ylabel="loss (nats)", xticks=windows)
axes.legend(fontsize=8)
picture

# %% [markdown]
# RoPE reads as well as any at the length it was trained for, and is the worst at twice that length.
# ALiBi is flat: it does not get better with more context, but it does not break. That is extrapolation in the
# sense of the paper, and no more. NoPE is flat too: with one layer, the past is a bag of letters to it.
#
# ## 9. Extend RoPE after training
#
# Why does RoPE break? Distances above 31 turn slow pairs to angles that no training step ever saw. So do not
# let them: **position interpolation** divides positions by $s$, so that 128 tokens use the angles of 32.
# Fast pairs then lose their resolution. **NTK** scaling slows a pair the more, the slower it is. **YaRN**
# interpolates pairs that did not turn once around in training, leaves fast ones alone, with a ramp between,
# and sharpens scores a little. No training here: we swap the scheme inside the trained model.

# %%
rope = readers["rope"]
extended = {"plain": losses["rope"]}
for way in ("linear", "ntk", "yarn"):
    found = losses["rope"][:1]
    for n in windows[1:]:
        longer = mt.build(
            "rope", dim=32, extension=way, factor=n / 32, **({"trained": 32} if way == "yarn" else {})
        )
        rope.blocks[0].mixer.position = longer
        found.append(last_sixteen(rope, n))
    extended[way] = found
rope.blocks[0].mixer.position = mt.build("rope", dim=32)
picture = Picture(6, 2.8)
axes = picture.subplots()
for (way, found), colour in zip(extended.items(), (BLUE, ORANGE, GREY, GREEN)):
    axes.plot(windows, found, "o-", color=colour, label=f"RoPE, {way}", markersize=4)
axes.plot(windows, losses["alibi"], "k--", label="ALiBi", linewidth=1)
axes.set(xlabel="characters in the window", ylabel="loss (nats)", xticks=windows)
axes.legend(fontsize=8)
print("at 64 characters:", ", ".join(f"{way} {found[2]:.2f}" for way, found in extended.items()))
picture

# %% [markdown]
# YaRN wins back most of what RoPE lost at 64, without one step of training, and NTK scaling the least. The
# price stays visible at 128: more than RoPE had at 32.
#
# ### Exercise 5: your own ALiBi layer
#
# Put it together: queries, keys, values, scores, bias, mask, softmax. The layer holds the four matrices and
# the slopes. `mt.ops.softmax(s, mask=visible)` gives rows that see nothing the weight 0. The check asks for
# something special of a relative scheme: hide the first tokens, and the rest must behave as if they had never
# been there. Then `check_variant` looks for holes.


# %%
class MyAlibi(mt.nn.Module):
    """x (B, N, D) -> (B, N, D), causal attention with linear biases."""

    def __init__(self, dim, *, heads=4, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.wq, self.wk, self.wv, self.wo = (mt.nn.Linear(dim, dim, False, rng, dtype=dtype) for _ in "qkvo")
        self.heads, self.slopes = heads, mt.build("alibi", dim, heads=heads).slopes.astype(dtype)

    def forward(self, x, *, mask=None):
        """mask: boolean, broadcastable to (B, H, N, N), True = visible; or None."""
        # BEGIN SOLUTION
        q, k, v = (mt.ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        n = np.arange(x.shape[1])
        bias = -self.slopes[:, None, None] * np.abs(n[:, None] - n).astype(x.dtype)
        visible = mt.ops.causal_mask(len(n), len(n))
        visible = visible if mask is None else visible & mask
        s = q @ k.mT / np.sqrt(q.shape[-1]).astype(x.dtype) + bias
        return self.wo(mt.ops.merge_heads(mt.ops.softmax(s, mask=visible) @ v))
        # END SOLUTION


# %% tags=["mistake"]
# Forgets the causal mask.
class MyAlibi(MyAlibi):
    def forward(self, x, *, mask=None):
        q, k, v = (mt.ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        n = np.arange(x.shape[1])
        bias = -self.slopes[:, None, None] * np.abs(n[:, None] - n).astype(x.dtype)
        s = q @ k.mT / np.sqrt(q.shape[-1]).astype(x.dtype) + bias
        return self.wo(mt.ops.merge_heads(mt.ops.softmax(s, mask=mask) @ v))


# %% tags=["mistake"]
# Divides the bias by the square root of the width as well.
class MyAlibi(MyAlibi):
    def forward(self, x, *, mask=None):
        q, k, v = (mt.ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        n = np.arange(x.shape[1])
        bias = -self.slopes[:, None, None] * np.abs(n[:, None] - n).astype(x.dtype)
        visible = mt.ops.causal_mask(len(n), len(n))
        visible = visible if mask is None else visible & mask
        s = (q @ k.mT + bias) / np.sqrt(q.shape[-1]).astype(x.dtype)
        return self.wo(mt.ops.merge_heads(mt.ops.softmax(s, mask=visible) @ v))


# %% tags=["mistake"]
# Multiplies by the mask after the softmax: weights no longer sum to one.
class MyAlibi(MyAlibi):
    def forward(self, x, *, mask=None):
        q, k, v = (mt.ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        n = np.arange(x.shape[1])
        bias = -self.slopes[:, None, None] * np.abs(n[:, None] - n).astype(x.dtype)
        s = q @ k.mT / np.sqrt(q.shape[-1]).astype(x.dtype) + bias
        p = mt.ops.softmax(s, mask=mt.ops.causal_mask(len(n), len(n)))
        p = p if mask is None else p * mask
        return self.wo(mt.ops.merge_heads(p @ v))


# %%
@exercise("MyAlibi")
def check_my_alibi():
    layer = MyAlibi(8, heads=2, seed=0, dtype="float64")
    reference = mt.build("softmax_attention", dim=8, heads=2, position="alibi", dtype="float64")
    reference.load_state_dict(layer.state_dict())
    for n in (1, 2, 20):
        x = mt.tensor(np.random.default_rng(n).standard_normal((1, n, 8)))
        answer = layer(x)
        assert answer is not None, "MyAlibi.forward gives nothing back yet: return a tensor (B, N, D)"
        assert answer.shape == x.shape, f"for {n} tokens the shape is {answer.shape}, expected {x.shape}"
        wrong = np.abs((answer - reference(x)).numpy()).max(axis=(0, 2))
        i = int(np.argmax(~(wrong <= 1e-9)))
        assert wrong.max() <= 1e-9, f"of {n} tokens, the output of token {i} is off by {wrong[i]:.2g}"
    rest = layer(x[:, 5:]).numpy()
    hidden = layer(x, mask=np.arange(20) >= 5).numpy()[:, 5:]
    error = np.abs(rest - hidden).max()
    assert error <= 1e-9, (
        f"with tokens 0 to 4 hidden, the others move by {error:.2g}, as if they still counted"
    )
    check_variant(MyAlibi, kind="token_mixer", claims=("causal", "batch_independent"), examples=NOTEBOOK)


# %%
edge = {name: [found[n] for n in (6, 7, 8, 12)] for name, found in many_lengths.items()}
on_text = {name: f"{found[0]:.2f} to {found[-1]:.2f}" for name, found in losses.items()}
rows = [
    (
        "*Attention Is All You Need* (1706.03762), 3.5: the sinusoids may allow lengths beyond training; "
        "learned positions do nearly as well",
        "they do not extrapolate: copying falls, from 6 symbols to 7, from "
        f"{edge['sinusoidal_pos'][0]:.2f} to {edge['sinusoidal_pos'][1]:.2f} (sinusoidal) and "
        f"{edge['learned_pos'][0]:.2f} to {edge['learned_pos'][1]:.2f} (learned)",
    ),
    (
        "*RoFormer* (2104.09864), 3.3 and 3.4.3: flexible in length; dependency decays with distance",
        f"text from 32 to 128 characters: loss {on_text['rope']}. The bound falls from "
        f"{bound[1]:.1f} to {bound[-1]:.1f} (distance 1 to 249), random scores stay within "
        f"{sizes.min():.1f} to {sizes.max():.1f}",
    ),
    (
        "*Train Short, Test Long* (2108.12409): ALiBi keeps its loss on longer texts; sinusoidal and rotary "
        "positions do not",
        f"yes. Loss from 32 to 128 characters: ALiBi {on_text['alibi']}, sinusoidal "
        f"{on_text['sinusoidal_pos']}, rotary {on_text['rope']}",
    ),
    (
        "*The Impact of Positional Encoding on Length Generalization* (2305.19466): without positions, "
        "decoders generalise best to longer problems; ALiBi, rotary and absolute positions are poor",
        "in part: at 8, NoPE and ALiBi hold best, so ALiBi is not poor here. Trained to 6, at 8 and 12: "
        + ", ".join(f"`{name}` {found[2]:.2f} and {found[3]:.2f}" for name, found in edge.items())
        + ". None copies well there",
    ),
    (
        "*YaRN* (2309.00071): interpolating slow pairs only extends RoPE better than linear or NTK scaling",
        "without more training, at 64 characters: "
        + ", ".join(f"{way} {found[2]:.2f}" for way, found in extended.items()),
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# One seed, models of seven to twenty-two thousand parameters, and a few seconds of training: read the numbers
# as examples, not as a ranking.
#
# ## On your own
#
# - Train section 6 on $n = 9$ instead of 12. At which length do you expect RoPE's echo? Is it right?
# - Give learned positions a random offset for each batch (train on positions 5 to 16, or 40 to 51). Does the
#   cliff move?
# - Section 7 uses 180 steps. Give NoPE 1000. Does it catch up inside, and what happens outside?
# - Build the copy model with `attention="cope"` and `position="nope"`: distances that count what matters
#   (arXiv:2405.18719). Where does its curve lie?
# - Change the base of RoPE to 100, or to 500000, on the text. Which pairs see a full turn in 32 tokens?
#
# ## Where to go next
#
# The schemes are short files: `rope.py` and `alibi.py` in `minitf/nn/positions`, each with its identities
# below. `minitf/attention/cope.py` counts with gates. Lesson `02_build_attention` builds the attention that
# all of them change.
