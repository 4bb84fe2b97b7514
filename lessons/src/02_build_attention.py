# %% [markdown]
# # Look things up softly: build attention and check it
#
# **What you will do.** Turn a dictionary into attention, one step at a time. Break each step on purpose, look
# at the damage, and mend it. At the end a property check attacks the attention that you wrote yourself.
#
# **What you will learn.** Queries, keys and values; masks and empty rows; what a second head is for; why
# scores are divided by $\sqrt{d}$; why attention needs positions; the online softmax; the key-value cache;
# and how to test code like this so that mistakes have nowhere to hide.
#
# **What you need.** Python, NumPy, matrix products, and what a derivative is. Lesson `01_build_autograd`
# helps, but is not required. Run the cells from top to bottom. The five exercises check themselves.
#
# **Variants.** `softmax_attention`

# %%
import numpy as np

import minitf as mt
from minitf.testing import exercise
from minitf.viz import Picture, attention_map, mask_picture

# The plain code, so that what you read in the library is what runs here.
mt.use("reference")
np.set_printoptions(precision=3, suppress=True)
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8A8A8A"

# %% [markdown]
# ## 1. A soft dictionary
#
# A dictionary holds *keys* and *values*. You bring a *query*. If it equals a key, you get the value, and
# otherwise nothing. Below, the keys are wind directions in degrees, and the values are temperatures. A wind
# from 60 degrees lies between two keys, so the answer should lie between their values.
#
# Let each key be a vector and score it by its dot product with the query. A **softmax** turns scores into
# weights that are positive and sum to one:
#
# $$w_j = \frac{\exp(q \cdot k_j / \tau)}{\sum_i \exp(q \cdot k_i / \tau)} \qquad\qquad o = \sum_j w_j v_j$$
#
# $\tau$ is the *temperature* of the softmax (nothing to do with the weather). Every key answers, the best one
# loudest.
#
# Run the two cells and see the weights sharpen. The orange line is the query, and the bars are the weights of
# the eight keys. Below is the answer for every query: at a high temperature a smooth curve, at a low one the
# steps of the hard dictionary.

# %%
angles = np.arange(0, 360, 45)
temperatures = np.array([-2.0, 1.0, 6.0, 14.0, 19.0, 15.0, 10.0, 3.0])
wind = dict(zip(angles.tolist(), temperatures.tolist()))
print("wind from 45 degrees:", wind[45])
print("wind from 60 degrees:", wind.get(60, "no such key"))


# %%
def direction(degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=-1)


keys, query = direction(angles), direction(60)
picture = Picture(7, 4)
top, bottom = picture.subfigures(2, 1, height_ratios=(1.25, 1))
curve, every = bottom.subplots(), np.linspace(0, 360, 721)
for column, tau in enumerate((1.0, 0.1, 0.01)):
    axes = top.add_subplot(1, 3, column + 1, projection="polar")
    weights = mt.ops.softmax(keys @ query / tau)
    axes.bar(np.radians(angles), weights, width=0.6, color=BLUE)
    axes.plot([np.radians(60)] * 2, [0, 1], color=ORANGE)
    axes.set(ylim=(0, 1), yticks=[])
    axes.set_title(f"tau = {tau}: answer {weights @ temperatures:.1f}", fontsize=10)
    axes.set_xticks(np.radians(angles[::2]), angles[::2], fontsize=8)
    answers = mt.ops.softmax(direction(every) @ keys.T / tau) @ temperatures
    curve.plot(every, answers, color=(GREY, BLUE, ORANGE)[column], label=f"tau = {tau}")
curve.plot(angles, temperatures, "k.", label="the dictionary")
curve.set(xlabel="query (degrees)", ylabel="answer", xticks=angles)
curve.legend(fontsize=7)
picture

# %% [markdown]
# ### Exercise 1: a soft dictionary that does not overflow
#
# `np.exp(1000)` is infinite. Softmax does not change when you subtract one number from all scores: subtract
# the largest, and no exponential exceeds one. Write the lookup with `np.exp`, without `mt.ops.softmax`.


# %%
def soft_lookup(query, keys, values, tau):
    """The answer (dv,) to query (d,), from keys (N, d) and values (N, dv)."""
    # BEGIN SOLUTION
    scores = keys @ query / tau
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values
    # END SOLUTION


# %% tags=["mistake"]
# Does not subtract the largest score before it divides by the temperature.
def soft_lookup(query, keys, values, tau):
    scores = keys @ query
    weights = np.exp((scores - scores.max()) * tau)
    return weights / weights.sum() @ values


# %% tags=["mistake"]
# Forgets that weights sum to one.
def soft_lookup(query, keys, values, tau):
    scores = keys @ query / tau
    return np.exp(scores - scores.max()) @ values


# %%
@exercise("soft_lookup")
def check_soft_lookup():
    values = np.stack([temperatures, angles], axis=-1)
    for tau in (1.0, 0.1, 1e-4):
        answer = soft_lookup(direction(60), direction(angles), values, tau)
        assert answer is not None, "soft_lookup gives nothing back yet"
        expected = mt.ops.softmax(direction(angles) @ direction(60) / tau) @ values
        assert np.allclose(answer, expected), f"for tau={tau} the answer is {answer}, expected {expected}"


# %% [markdown]
# ### Queries, keys and values are projections
#
# In a transformer nobody hands you a dictionary. Each token $x$ makes its own query, key and value by three
# learned matrices: $q = x W_q$ (what I look for), $k = x W_k$ (what I offer), $v = x W_v$ (what I pass on).
#
# Why three? Without them the score of two tokens is $x_i \cdot x_j$: tokens look at tokens like themselves,
# and $i$ looks at $j$ as hard as $j$ at $i$. With them, a noun can ask for adjectives, and a verb for its
# noun.

# %%
words = ["a", "small", "red", "ball", "rolls"]
# One column for each kind of word: 0 article, 1 adjective, 2 noun, 3 verb.
kinds = np.eye(4)[[0, 1, 1, 2, 3]]
# Articles and adjectives ask for their own kind, nouns for adjectives, verbs for nouns.
w_q, w_k = np.eye(4)[[0, 1, 1, 2]], 4 * np.eye(4)
same = mt.ops.softmax(kinds @ (4 * kinds).T)
asked = mt.ops.softmax((kinds @ w_q) @ (kinds @ w_k).T)
attention_map(np.stack([same, asked]), words, titles=["without projections", "with projections"])

# %% [markdown]
# ## 2. Masks: who may look at whom
#
# A mask is a boolean array of shape (queries, keys); `True` means *visible*. Hidden pairs get the score
# $-\infty$ before the softmax, hence the weight 0. Two masks are everywhere:
#
# - **causal**: a token sees itself and what came before, so that a model cannot read the word it must
#   predict;
# - **padding**: sentences of different lengths share a batch, and the filling must not be seen.
#
# Both must allow a pair. Here a sentence of three words fills five places. Look at the first two rows: they
# are *empty*.

# %%
tokens = ["-", "-", "the", "cat", "sat"]
real = np.array([word != "-" for word in tokens])
visible = mt.ops.causal_mask(5, 5) & real
mask_picture(visible, tokens, title="causal and padding ('-' is filling)")

# %% [markdown]
# ### Exercise 2: a causal mask for queries that come last
#
# A model that has read five tokens and gets two more asks with 2 queries and has 7 keys. The last query is
# the last token: it sees all 7 keys. The one before sees 6. In general key $j$ is visible to query $i$ where
# $j \le i + (N_k - N_q)$, counted from 0. With more queries than keys, the first queries see nothing.


# %%
def my_causal_mask(n_queries, n_keys):
    """Boolean (Nq, Nk), True = visible, the last query aligned with the last key."""
    # BEGIN SOLUTION
    i, j = np.arange(n_queries)[:, None], np.arange(n_keys)
    return j <= i + (n_keys - n_queries)
    # END SOLUTION


# %% tags=["mistake"]
# Aligns the first query with the first key.
def my_causal_mask(n_queries, n_keys):
    return np.arange(n_keys) <= np.arange(n_queries)[:, None]


# %% tags=["mistake"]
# A token does not see itself.
def my_causal_mask(n_queries, n_keys):
    i, j = np.arange(n_queries)[:, None], np.arange(n_keys)
    return j < i + (n_keys - n_queries)


# %%
@exercise("my_causal_mask")
def check_my_causal_mask():
    for sizes in [(1, 1), (3, 3), (2, 7), (1, 4), (4, 2)]:
        mask = my_causal_mask(*sizes)
        assert mask is not None, "my_causal_mask gives nothing back yet"
        assert np.shape(mask) == sizes, f"for {sizes} queries and keys the shape is {np.shape(mask)}"
        wrong = np.argwhere(mask != mt.ops.causal_mask(*sizes))
        assert len(wrong) == 0, f"for {sizes} queries and keys the entry {tuple(wrong[0].tolist())} is wrong"


# %% [markdown]
# ### Why not -1e9?
#
# Much code adds $-10^9$ to hidden scores instead of $-\infty$, because $-\infty$ gives NaN in an empty row.
# It works as long as something is visible. Suppose a query asks three documents, and all three are filling
# with nonsense values 70, 80 and 90. Nothing should come back. The gradient says what training would do to
# the nonsense.

# %%
q = np.ones((1, 1, 1, 4), "float32")
k = np.random.default_rng(0).standard_normal((1, 1, 3, 4)).astype("float32")
nonsense = np.array([70, 80, 90], "float32").reshape(1, 1, 3, 1)
nothing = np.zeros((1, 3), bool)
scores = q @ k.mT / 2


def with_large_negative(v):
    return mt.ops.softmax(scores + np.where(nothing, 0, -1e9).astype("float32")) @ v


def with_rule(v):
    return mt.ops.softmax_attention(q, k, v, mask=nothing)


with np.errstate(invalid="ignore"):
    hidden = np.where(nothing, scores, -np.inf)
    print("plain softmax of -inf:", np.exp(hidden - hidden.max()).ravel(), "as weights")
for name, attend in [("-1e9", with_large_negative), ("empty rows are zero", with_rule)]:
    answer, slope = mt.value_and_grad(lambda v, attend=attend: attend(v).sum())(mt.tensor(nonsense))
    print(f"{name}: answer {answer.item():.1f}, gradient {slope.numpy().ravel()}")

# %% [markdown]
# With -1e9 the answer is the mean of what nobody may see, and nothing warns you: adding $-10^9$ in float32
# swallows the scores, all three become equal, and softmax of equal scores is uniform. The rule in `minitf`
# is: hidden means $-\infty$, and **a row that sees nothing gives zeros**, with zero gradient.
#
# ## 3. Heads: asking two questions at once
#
# One head makes one set of weights, and passes everything it fetches through the same matrices. So it cannot
# treat two fetched tokens differently. Here is a task that needs exactly that. Among six tokens, one is
# marked *a* and one *b*, in random places. The last token, marked *?*, must answer with the difference
# $x_a-x_b$. We train a layer with one head and a layer with two, and then see where *?* looks, on tokens
# that were not trained on.


# %%
def differences(rng, size=128, width=12):
    """Tokens (size, 7, width + 4): values and three marks; targets (size, width)."""
    x = np.zeros((size, 7, width + 4), "float32")
    x[:, :6, :width] = rng.standard_normal((size, 6, width))
    # Places of a and b: two different ones of the six.
    a, b = np.argsort(rng.random((size, 6)), axis=1)[:, :2].T
    row = np.arange(size)
    x[row, a, width], x[row, b, width + 1], x[:, 6, width + 2] = 1, 1, 1
    return mt.tensor(x), x[row, a, :width] - x[row, b, :width]


tokens, targets = differences(np.random.default_rng(0), size=1)
print("tokens", tokens.shape, "- the marks a, b, ? of each token:")
print(tokens.numpy()[0, :, 12:15].T)


# %%
def learn(heads, steps=250):
    """A trained layer with `heads` heads of width 24 / heads, and its error: 1 = always answering zero."""
    rng, errors = np.random.default_rng(0), []
    layer = mt.build("softmax_attention", dim=16, heads=heads, head_dim=24 // heads, causal=False, seed=1)
    optimizer = mt.train.AdamW(layer.parameters(), lr=0.02, weight_decay=0.0)
    for _ in range(steps):
        tokens, targets = differences(rng)
        loss = mt.ops.square(layer(tokens)[:, -1, :12] - targets).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    return layer, errors


one, one_errors = learn(1)
two, two_errors = learn(2)
picture = Picture(6, 2.8)
axes = picture.subplots()
axes.plot(one_errors, color=ORANGE, label=f"one head, {one.count_parameters()} parameters")
axes.plot(two_errors, color=BLUE, label=f"two heads, {two.count_parameters()} parameters")
axes.axhline(0.5, color=GREY, linestyle="--", label="only ever fetching one of the two")
axes.set(xlabel="training step", ylabel="error", ylim=(0, 1.1))
axes.legend(fontsize=8)
picture

# %%
tokens, _ = differences(np.random.default_rng(99), size=1)
marks = tokens.numpy()[0, :, 12:15]
names = ["ab?"[mark.argmax()] if mark.any() else "." for mark in marks]
maps = np.concatenate([one.weights(tokens).numpy()[0], two.weights(tokens).numpy()[0]])
picture = Picture(6, 2)
axes = picture.subplots()
axes.imshow(maps[:, -1], cmap="Blues", vmin=0, vmax=1)
axes.set_yticks(range(3), ["one head", "two heads: first", "two heads: second"])
axes.set_xticks(range(7), names)
for (i, j), weight in np.ndenumerate(maps[:, -1]):
    color = "white" if weight > 0.5 else "black"
    axes.text(j, i, f"{weight:.2f}", ha="center", va="center", color=color, fontsize=8)
axes.set_title("weights of the token '?'", fontsize=10)
picture

# %% [markdown]
# The one head stops near one half: the error of fetching only *a*, or only *b*. It has as many parameters as
# the two heads; what it lacks is a second softmax. The two heads divide the work. Look closer: both spread
# the same small weights over the tokens that do not matter, and the subtraction cancels them.
#
# ## 4. Why the scale $1/\sqrt{d}$
#
# Let the entries of $q$ and $k$ be independent, with mean 0 and variance 1. Then $q \cdot k$ is a sum of $d$
# such products, and its variance is $d$. So scores grow with the width of a head. Large scores make softmax a
# maximum: its **entropy** (how many keys share the weight) falls, and its **gradient** dies, because a weight
# of 1 cannot grow.
#
# Measured over 400 random queries with 32 keys each: the gradient is that of a random weighted sum of the
# weights, with respect to the scores; the picture shows the median of its length.


# %%
def look(d, scaled):
    """Variance of the scores, mean entropy of the weights, median length of the gradient."""
    rng = np.random.default_rng(0)
    q, k, g = (
        rng.standard_normal((400, 1, d)),
        rng.standard_normal((400, 32, d)),
        rng.standard_normal((400, 32)),
    )
    s = mt.tensor((q @ k.mT)[:, 0] * (d**-0.5 if scaled else 1.0), requires_grad=True)
    p, log_p = mt.ops.softmax(s), mt.ops.log_softmax(s)
    (p * g).sum().backward()
    lengths = np.linalg.norm(s.grad.numpy(), axis=-1)
    return np.var(s.numpy()), -(p * log_p).sum(axis=-1).mean().item(), np.median(lengths)


widths = [1, 4, 16, 64, 256, 1024]
plain, scaled = (np.array([look(d, scale) for d in widths]) for scale in (False, True))
picture = Picture(7, 2.5)
titles = ["variance of the scores", "entropy (nats)", "gradient"]
for i, axes in enumerate(picture.subplots(1, 3)):
    axes.plot(widths, plain[:, i], "o-", color=ORANGE, label="without the scale")
    axes.plot(widths, scaled[:, i], "o-", color=BLUE, label="with the scale")
    axes.set(xscale="log", xlabel="width d", title=titles[i], yscale=["log", "linear", "log"][i])
    if i == 1:
        axes.axhline(np.log(32), color=GREY, linestyle="--")
axes.legend(fontsize=7, loc="lower left")
picture

# %% [markdown]
# The dashed line is $\ln 32$: all keys share alike. With the scale, all three curves are flat: a head of any
# width starts equally undecided, and equally able to learn.
#
# ## 5. Attention does not know the order
#
# Nothing in $\sum_j w_j v_j$ says where token $j$ stands. Shuffle the tokens, and the outputs are shuffled in
# the same way: attention is **permutation equivariant**. A dog that bites a man looks like a dog that is
# bitten.

# %%
vocabulary = dict(zip(("dog", "bites", "man"), np.random.default_rng(0).standard_normal((3, 8))))
first = mt.tensor([[vocabulary[word] for word in ["dog", "bites", "man"]]])
second = mt.tensor([[vocabulary[word] for word in ["man", "bites", "dog"]]])
for name, options in {
    "no positions": {"causal": False},
    "no positions, causal mask": {"causal": True},
    "rotary positions": {"causal": False, "position": "rope"},
}.items():
    layer = mt.build("softmax_attention", dim=8, heads=2, seed=0, dtype="float64", **options)
    apart = np.abs(layer(first)[0, 0].numpy() - layer(second)[0, 2].numpy()).max()
    print(f"{name:26}: the two dogs differ by {apart:.2e}")

# %% [markdown]
# A causal mask breaks the symmetry, a position scheme does it on purpose. **Rotary positions** (RoPE) turn
# each pair of coordinates of $q$ and $k$ by an angle that grows with the position. A dot product sees the
# difference of two angles only. So scores depend on the **distance** of two tokens, not on where they stand.
# Below, the same vector stands at each of 48 positions. Left: every diagonal has one colour. Right: all 2304
# scores fall on one curve.

# %%
n = np.arange(48)
x = np.broadcast_to(np.random.default_rng(3).standard_normal(32), (1, 1, 48, 32))
scores = mt.ops.rope(x, n) @ mt.ops.rope(x, n).mT
shifted = mt.ops.rope(x, n + 1000) @ mt.ops.rope(x, n + 1000).mT
moved = np.abs(scores - shifted).max()
print(f"largest change of a score when all tokens move by 1000 places: {moved:.1e}")
picture = Picture(7, 2.8)
left, right = picture.subplots(1, 2)
left.imshow(scores[0, 0], cmap="Blues")
left.set(xlabel="position of the key", ylabel="position of the query", title="score")
distance, order = (n[:, None] - n).ravel(), np.argsort((n[:, None] - n).ravel())
right.plot(distance[order], scores.ravel()[order], ".-", linewidth=0.5, markersize=3, color=BLUE)
right.set(xlabel="position of query minus key", title="score against distance")
picture

# %% [markdown]
# ## 6. The online softmax: never store the weights
#
# The weights are a table of queries times keys. At 100 000 tokens that is ten billion numbers per head. But
# the answer only needs three things per query: the largest score so far $m$, the sum $z$ of $\exp(s - m)$,
# and the weighted sum $o$ of the values. When a larger score arrives, what was summed before shrinks by
# $\exp(m_{old} - m_{new})$. That takes ten lines.
#
# `minitf/attention/softmax.py` has both forms, for all queries at once: `plain` and `online`. The second cell
# measures what each needs: `mt.profile` counts the memory of all intermediate results at its peak, and the
# operations. The online form saves memory, not operations.


# %%
def online(q, k, v, tile=16):
    """The answer (dv,) to q (d,) from k (N, d) and v (N, dv), with `tile` keys in sight at a time."""
    m, z, o = -np.inf, 0.0, np.zeros(v.shape[-1])
    for j in range(0, len(k), tile):
        s = k[j : j + tile] @ q / np.sqrt(len(q))
        m_new = max(m, s.max())
        shrink, p = np.exp(m - m_new), np.exp(s - m_new)
        z = shrink * z + p.sum()
        o = shrink * o + p @ v[j : j + tile]
        m = m_new
    return o / z


rng = np.random.default_rng(0)
q, k, v = rng.standard_normal(16), rng.standard_normal((1000, 16)), rng.standard_normal((1000, 4))
expected = mt.ops.softmax_attention(q[None, None, None], k[None, None], v[None, None])[0, 0, 0]
online_error = max(np.abs(online(q, k, v, tile) - expected).max() for tile in (1, 7, 16, 1000))
print(f"largest difference from softmax attention, over four tile sizes: {online_error:.1e}")

# %%
from minitf.attention import softmax


def cost(attend, n):
    """(bytes at the peak, operations) of attend(q, k, v, causal mask) for n tokens of width 16, float32."""
    q, k, v = (mt.tensor(np.ones((1, 1, n, 16), "float32")) for _ in range(3))
    with mt.profile() as p:
        attend(q, k, v, mt.ops.causal_mask(n, n))
    return p.peak_bytes, p.flops


sizes = [128, 256, 512, 1024, 2048]
costs = np.array([[cost(attend, n) for n in sizes] for attend in (softmax.plain, softmax.online)])
memory, operations = np.moveaxis(costs, -1, 0)
print(f"{sizes[-1]} tokens: {memory[0, -1]:,} bytes plain, {memory[1, -1]:,} bytes online,")
print(f"and {operations[0, -1]:,} against {operations[1, -1]:,} operations")
picture = Picture(5, 2.6)
axes = picture.subplots()
axes.plot(sizes, memory[0] / 2**20, "o-", color=ORANGE, label="plain: a table of N x N")
axes.plot(sizes, memory[1] / 2**20, "o-", color=BLUE, label="online: N rows of one tile")
axes.set(xscale="log", yscale="log", xlabel="tokens N", ylabel="peak memory (MiB)")
axes.set_xticks(sizes, sizes, minor=False)
axes.minorticks_off()
axes.legend(fontsize=8)
picture

# %% [markdown]
# ### Exercise 3: merge two partial answers
#
# Two machines hold half of the keys each. Each sends its answer $o$ and the logarithm of its denominator,
# $\ell = \log \sum_j \exp(s_j)$. That is enough: the denominator of all keys is the sum of both, and each
# half counts by its share of it. Stay in logarithms: `np.logaddexp(a, b)` is $\log(e^a + e^b)$ without
# overflow. One half may have seen nothing: then its $\ell$ is $-\infty$.


# %%
def merge(o_a, l_a, o_b, l_b):
    """o (N, dv) and l (N,) of all keys, from those of two parts."""
    # BEGIN SOLUTION
    l = np.logaddexp(l_a, l_b)
    o = np.exp(l_a - l)[:, None] * o_a + np.exp(l_b - l)[:, None] * o_b
    return o, l
    # END SOLUTION


# %% tags=["mistake"]
# Averages the two answers, whatever their weights.
def merge(o_a, l_a, o_b, l_b):
    return (o_a + o_b) / 2, np.logaddexp(l_a, l_b)


# %% tags=["mistake"]
# Adds the logarithms, which multiplies the sums.
def merge(o_a, l_a, o_b, l_b):
    l = l_a + l_b
    return np.exp(l_a - l)[:, None] * o_a + np.exp(l_b - l)[:, None] * o_b, l


# %%
@exercise("merge")
def check_merge():
    rng = np.random.default_rng(0)
    for cut, size in [(5, 1), (2, 1), (0, 1), (5, 60)]:
        q, k, v = (size * rng.standard_normal((1, 1, 8, 4)) for _ in range(3))
        parts = [np.arange(8) < cut, np.arange(8) >= cut, np.ones(8, bool)]
        o = [mt.ops.softmax_attention(q, k, v, mask=part)[0, 0] for part in parts]
        l = [mt.ops.attention_logsumexp(q, k, mask=part)[0, 0] for part in parts]
        merged = merge(o[0], l[0], o[1], l[1])
        assert merged is not None, "merge gives nothing back yet"
        words = f"with {cut} and {8 - cut} keys and scores of about {size**2}"
        assert np.allclose(merged[1], l[2]), f"{words}, l is {merged[1][0]:.3f}, expected {l[2][0]:.3f}"
        assert np.allclose(merged[0], o[2]), f"{words}, o is {merged[0][0]}, expected {o[2][0]}"


# %% [markdown]
# ## 7. The key-value cache
#
# A model that writes makes one token at a time. Under a causal mask, the keys and values of old tokens never
# change. So keep them: each new token adds one key and one value, and asks one query. In `minitf`, `start`
# gives the empty cache and `step` takes one token. Token by token must equal all at once.
#
# The second cell counts the operations for the token in place $t$. Without a cache, the layer runs again on
# all $t$ tokens.

# %%
layer = mt.build("softmax_attention", dim=32, heads=4, position="rope", seed=0, dtype="float64")
x = mt.tensor(np.random.default_rng(1).standard_normal((2, 40, 32)))
state, rows = layer.start(batch=2), []
for t in range(40):
    y, state = layer.step(x[:, t], state)
    rows.append(y.numpy())
stream_error = np.abs(np.stack(rows, axis=1) - layer(x).numpy()).max()
print(f"largest difference {stream_error:.1e}")
print(f"the cache holds keys {state.k.shape} and values {state.v.shape}")

# %%
layer, x = mt.build("softmax_attention", dim=64, seed=0), mt.tensor(np.ones((1, 512, 64), "float32"))
lengths, again, cached = 2 ** np.arange(10), [], []
for t in lengths.tolist():
    with mt.profile() as p:
        layer(x[:, :t])
    again.append(p.flops)
    _, state = layer.prefill(x[:, : t - 1], layer.start(1))
    with mt.profile() as p:
        layer.step(x[:, t - 1], state)
    cached.append(p.flops)
print(f"token 512 costs {again[-1]:,} operations without a cache, {cached[-1]:,} with it")
picture = Picture(5, 2.4)
axes = picture.subplots()
axes.loglog(lengths, again, "o-", color=ORANGE, label="without a cache")
axes.loglog(lengths, cached, "o-", color=BLUE, label="with a cache")
axes.set(xlabel="place of the token", ylabel="operations for it")
axes.legend(fontsize=8)
picture

# %% [markdown]
# ### Exercise 4: one step with a cache
#
# Write the step for one head. Use `times(a, b)` for each matrix product: it counts multiplications, so that
# the check sees whether old keys are made again.

# %%
counted, width = [0], 8
w_q, w_k, w_v = np.random.default_rng(5).standard_normal((3, width, width)) / np.sqrt(width)


def times(a, b):
    counted[0] += a.size * b.shape[-1]
    return a @ b


def cached_step(x, keys, values):
    """The answer (1, D) to token x (1, D), and the keys and values (t + 1, D) with those of x at the end."""
    # BEGIN SOLUTION
    keys = np.concatenate([keys, times(x, w_k)])
    values = np.concatenate([values, times(x, w_v)])
    scores = times(times(x, w_q), keys.T) / np.sqrt(width)
    return times(mt.ops.softmax(scores), values), keys, values
    # END SOLUTION


# %% tags=["mistake"]
# Computes all keys and values again.
def cached_step(x, keys, values):
    keys = np.concatenate([keys, times(x, w_k)])
    values = np.concatenate([values, times(x, w_v)])
    times(keys, w_k)
    scores = times(times(x, w_q), keys.T) / np.sqrt(width)
    return times(mt.ops.softmax(scores), values), keys, values


# %% tags=["mistake"]
# Looks only at what came before.
def cached_step(x, keys, values):
    scores = times(times(x, w_q), np.concatenate([keys, 0 * times(x, w_k)]).T) / np.sqrt(width)
    keys = np.concatenate([keys, times(x, w_k)])
    values = np.concatenate([values, times(x, w_v)])
    return times(mt.ops.softmax(scores), values), keys, values


# %%
@exercise("cached_step")
def check_cached_step():
    x = np.random.default_rng(6).standard_normal((12, width))
    q, k, v = ((x @ w)[None, None] for w in (w_q, w_k, w_v))
    expected = mt.ops.softmax_attention(q, k, v, causal=True)[0, 0]
    keys, values = np.zeros((0, width)), np.zeros((0, width))
    for t in range(12):
        counted[0] = 0
        result = cached_step(x[t : t + 1], keys, values)
        assert result is not None, "cached_step gives nothing back yet"
        y, keys, values = result
        shapes = np.shape(keys), np.shape(values)
        assert shapes == ((t + 1, width),) * 2, f"after {t + 1} tokens keys and values have shapes {shapes}"
        assert np.allclose(y, expected[t : t + 1]), f"token {t}: the answer is {y}, expected {expected[t]}"
        enough = 3 * width**2 + 2 * (t + 1) * width
        assert counted[0] == enough, f"token {t}: `times` counted {counted[0]} multiplications, not {enough}"


# %% [markdown]
# ## 8. Property-check your own attention
#
# An example test asks: is the answer right *here*? A **property** says what must hold *everywhere*, and a
# machine looks for a place where it does not. Each property below is a sentence and two computations that
# must agree, for any function `f(q, k, v, mask)`. Here `q` is (B, H, Nq, d), `k` and `v` are (B, H, Nk, d),
# and `mask` is (Nq, Nk).
#
# A trick in the first: with all values equal to one, the answer is the sum of the weights.
#
# **Hypothesis** draws the cases: sizes, which pairs are hidden, and a seed for the numbers. When it finds a
# case that fails, it *shrinks* it: smaller sizes, fewer hidden pairs, as long as it still fails. What remains
# is the smallest case that shows the mistake, and that often names the mistake.


# %%
def rows_sum_to_one(f, q, k, v, mask):
    sums = np.broadcast_to(mask.any(axis=-1, keepdims=True), (*q.shape[:3], v.shape[-1]))
    return f(q, k, np.ones_like(v), mask), sums


def order_of_keys(f, q, k, v, mask):
    return f(q, k[..., ::-1, :], v[..., ::-1, :], mask[:, ::-1]), f(q, k, v, mask)


def hidden_keys(f, q, k, v, mask):
    # Change the last key and value, and compare the queries that cannot see them.
    blind, last = ~mask[:, -1], np.arange(k.shape[-2])[:, None] == k.shape[-2] - 1
    return f(q, k + 3 * last, v + 3 * last, mask)[..., blind, :], f(q, k, v, mask)[..., blind, :]


def no_leak(f, q, k, v, mask):
    return hidden_keys(f, q, k, v, mt.ops.causal_mask(*mask.shape))


def library(f, q, k, v, mask):
    return f(q, k, v, mask), mt.ops.softmax_attention(q, k, v, mask=mask)


PROPERTIES = {
    "rows sum to one, empty rows to zero": rows_sum_to_one,
    "the order of keys and values does not matter": order_of_keys,
    "hidden keys do not matter": hidden_keys,
    "no leak from later tokens (causal mask)": no_leak,
    "equals mt.ops.softmax_attention": library,
}
print("\n".join(PROPERTIES))

# %%
from dataclasses import dataclass

import hypothesis
from hypothesis import strategies as st


@dataclass
class Case:
    sizes: tuple  # B, H, Nq, Nk, d
    hidden: list  # Nq * Nk booleans
    seed: int

    def arrays(self):
        (b, h, nq, nk, d), rng = self.sizes, np.random.default_rng(self.seed)
        q, k, v = (rng.standard_normal((b, h, n, d)) for n in (nq, nk, nk))
        return q, k, v, ~np.reshape(self.hidden, (nq, nk))

    def __str__(self):
        b, h, nq, nk, d = self.sizes
        pairs = [divmod(i, nk) for i, hidden in enumerate(self.hidden) if hidden]
        sizes = f"batch {b}, heads {h}, queries {nq}, keys {nk}, width {d}"
        return f"{sizes}, hidden (query, key) {pairs or 'none'}"


@st.composite
def cases(draw):
    sizes = tuple(draw(st.integers(1, most)) for most in (2, 2, 4, 4, 4))
    pairs = sizes[2] * sizes[3]
    hidden = draw(st.lists(st.booleans(), min_size=pairs, max_size=pairs))
    return Case(sizes, hidden, seed=draw(st.integers(0, 99)))


print(Case((1, 2, 2, 3, 4), [False, True, True, False, False, True], seed=0))


# %%
def differs(f, sides, case):
    """What is wrong with this case, in words; empty if both sides agree."""
    try:
        got, expected = sides(f, *case.arrays())
        got = np.full_like(expected, np.nan, dtype=float) if got is None else np.asarray(got)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if got.shape != expected.shape:
        return f"gives shape {got.shape}, expected {expected.shape}"
    wrong = ~np.isclose(got, expected, atol=1e-9)
    return f"gives {got[wrong][0]:.3f}, expected {expected[wrong][0]:.3f}" if wrong.any() else ""


def property_check(f):
    """{property: its smallest failing case, in words}; empty when every property holds."""
    settings = hypothesis.settings(deadline=None, max_examples=30, derandomize=True)
    failures = {}
    for name, sides in PROPERTIES.items():
        try:
            case = hypothesis.find(
                cases(), lambda case, sides=sides: differs(f, sides, case), settings=settings
            )
        except hypothesis.errors.NoSuchExample:
            continue
        failures[name] = f"{case}: {differs(f, sides, case)}"
    return failures


print("the library:", property_check(mt.ops.softmax_attention) or "all properties hold")


# %%
# A check that has never failed proves nothing. So plant bugs, and see whether it finds them.
def forgotten_scale(q, k, v, mask):
    return mt.ops.softmax(q @ k.mT, mask=mask) @ v


def mask_after_softmax(q, k, v, mask):
    return (mt.ops.softmax(q @ k.mT / np.sqrt(q.shape[-1])) * mask) @ v


def wrong_axis(q, k, v, mask):
    return mt.ops.softmax(q @ k.mT / np.sqrt(q.shape[-1]), axis=-2, mask=mask) @ v


def large_negative(q, k, v, mask):
    return mt.ops.softmax(q @ k.mT / np.sqrt(q.shape[-1]) + np.where(mask, 0, -1e9)) @ v


def always_causal(q, k, v, mask):
    return mt.ops.softmax_attention(q, k, v, mask=mask, causal=True)


bugs = [forgotten_scale, mask_after_softmax, wrong_axis, large_negative, always_causal]
found = {bug.__name__: property_check(bug) for bug in bugs}
for name, failures in found.items():
    for sentence, words in failures.items():
        print(f"{name} breaks: {sentence}\n    {words}")
caught = np.array([[sentence in found[bug.__name__] for sentence in PROPERTIES] for bug in bugs])
picture = Picture(7, 2.6)
axes = picture.subplots()
axes.imshow(caught, cmap="Oranges", vmin=0, vmax=1.6, aspect="auto")
for (i, j), hit in np.ndenumerate(caught):
    axes.text(j, i, "found" if hit else "-", ha="center", va="center", fontsize=9)
axes.set_yticks(range(len(bugs)), [bug.__name__ for bug in bugs])
axes.set_xticks(range(5), ["sums", "order of keys", "hidden keys", "no leak", "the library"])
axes.xaxis.tick_top()
picture

# %% [markdown]
# Read the smallest cases like a detective. The forgotten scale needs width 2 ($\sqrt{1} = 1$ hides it) and
# two keys (one key has weight 1 in any case). The mask after the softmax needs a hidden key beside a visible
# one. -1e9 needs a single hidden pair: an empty row.
#
# The comparison with the library finds every bug, but it needs a library that is right. The other four
# properties need none: they are what you have when you invent something new. They miss the forgotten scale,
# since a softmax without the scale is still a perfectly good softmax.
#
# ### Exercise 5: your attention against the machine
#
# Write all of it: scores, scale, mask, softmax, weighted sum. Use NumPy, or `mt.ops.softmax` if you like. If
# it is wrong, the check names the smallest case. Watch the empty rows.


# %%
def my_attention(q, k, v, mask):
    """Answers (B, H, Nq, d) from q (B, H, Nq, d), k and v (B, H, Nk, d), mask (Nq, Nk), True = visible."""
    # BEGIN SOLUTION
    scores = np.where(mask, q @ k.mT / np.sqrt(q.shape[-1]), -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - np.where(largest == -np.inf, 0, largest))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v
    # END SOLUTION


# %% tags=["mistake"]
# An empty row becomes NaN.
def my_attention(q, k, v, mask):
    scores = np.where(mask, q @ k.mT / np.sqrt(q.shape[-1]), -np.inf)
    with np.errstate(all="ignore"):
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True) @ v


# %% tags=["mistake"]
# Forgets the scale.
def my_attention(q, k, v, mask):
    scores = np.where(mask, q @ k.mT, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - np.where(largest == -np.inf, 0, largest))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v


# %%
@exercise("my_attention")
def check_my_attention():
    one = np.ones((1, 1, 1, 1))
    answer = my_attention(one, one, one, np.ones((1, 1), bool))
    assert answer is not None, "my_attention gives nothing back yet"
    for sentence, words in property_check(my_attention).items():
        raise AssertionError(f"broken: {sentence}. {words}")
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(7)
    for size in (1, 30):
        q, k, v = (size * rng.standard_normal((2, 3, n, 5)) for n in (6, 9, 9))
        mask = rng.random((6, 9)) < 0.5
        error = np.abs(my_attention(q, k, v, mask) - mt.ops.softmax_attention(q, k, v, mask=mask)).max()
        assert error <= 1e-9, f"inputs of size {size}: differs from the library's by {error:.2g}"
    # END HIDDEN TESTS


# %%
from IPython.display import Markdown

rows = [
    (
        "*Attention Is All You Need* (arXiv:1706.03762), 3.2.1: with large widths dot products grow large, "
        "and softmax has extremely small gradients",
        f"from width 1 to 1024 without the scale: variance {plain[0, 0]:.1f} to {plain[-1, 0]:.0f}, "
        f"median gradient {plain[0, 2]:.2f} to {plain[-1, 2]:.0e}; "
        f"with the scale {scaled[0, 2]:.2f} to {scaled[-1, 2]:.2f}",
    ),
    (
        "the same, 3.2.2: heads attend to different places jointly; with one head, averaging inhibits this",
        f"error on *a - b* after training, at equal parameters: one head {np.mean(one_errors[-20:]):.2f}, "
        f"two heads {np.mean(two_errors[-20:]):.0e}",
    ),
    (
        "*RoFormer* (arXiv:2104.09864): scores depend on relative positions only",
        f"a shift by 1000 places changes scores by at most {moved:.0e}",
    ),
    (
        "*Online normalizer calculation for softmax* (arXiv:1805.02867): the normaliser in one pass, exactly",
        f"equal within {online_error:.0e}; at {sizes[-1]} tokens {memory[0, -1] / 2**20:.0f} MiB plain, "
        f"{memory[1, -1] / 2**20:.1f} MiB online",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - In section 3, give the one head a different task: $x_a + x_b$. Predict the error before you run it. Why is
#   it easy?
# - Merge two halves that have *both* seen nothing. What does your `merge` give, and what does the mask rule
#   ask for?
# - Plant a bug that `property_check` does not find (think of large scores). Which property would find it? Add
#   it to `PROPERTIES`.
# - The entropy in section 4 is that of random vectors. Train the layer of section 3 and measure it again.
#   Does training make attention sharper?
# - A cache grows for ever. Keep only the last 8 keys in `cached_step`. What does the parallel form with the
#   same answers look like as a mask?
#
# ## Where to go next
#
# Read `minitf/attention/softmax.py`: you have met almost every line of it. Its identities, at the end of the
# file, are properties of the kind you checked here. Lesson `00_tour_minitf` shows the attention maps of a
# trained model, and `mt.catalogue.find("*", kind="attention")` lists the kinds of attention of the library.
