# %% [markdown]
# # Unroll linear attention into a recurrent network
#
# **What you will do.** Move one pair of brackets, and watch attention become a recurrent network with a
# memory of fixed size. Compute the same map in three orders. Fill the memory until it fails, see why, and
# repair it in two ways: with the delta rule and with gates. At the end four kinds of attention are trained
# to recall pairs, and a property check attacks a gated layer that you wrote.
#
# **What you will learn.** The recurrent, the parallel and the chunked form, and what each costs; a state as a
# sum of outer products; why keys disturb each other; how to overwrite one entry; how to forget; and how to
# measure memory with associative recall.
#
# **What you need.** Python, NumPy, matrix products, and what a derivative is. Lesson `02_build_attention`
# helps. Run the cells from top to bottom. The five exercises check themselves.
#
# **Variants.** `linear_attention`, `gla`, `delta_net`, `gated_delta_net`, `softmax_attention`

# %%
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf import ops
from minitf.attention.linear_attention import elu_plus_one, normalised, parallel, recurrent
from minitf.nn import Embedding, Linear, Module, RMSNorm
from minitf.testing import NOTEBOOK, check_variant, exercise
from minitf.viz import Picture
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

# The plain code, so that what you read in the library is what runs here.
mt.use("reference")
np.set_printoptions(precision=3, suppress=True)
PURPLE = "#CC79A7"

# %% [markdown]
# ## 1. Move the brackets
#
# Attention compares each of $N$ queries with each of $N$ keys: $N^2$ scores. Suppose a score were the plain
# product $q_i \cdot k_j$, without the exponential. Then all answers together are
#
# $$(Q K^T)\, V = Q\, (K^T V)$$
#
# Here $Q$ and $K$ are $(N, d)$, and $V$ is $(N, d)$ too. Both sides are the same matrix. **Predict:** with
# $N = 1000$ and $d = 64$, how many times more work is the left side?

# %%
rng = np.random.default_rng(0)
q, k, v = (mt.tensor(rng.standard_normal((1000, 64))) for _ in range(3))
with mt.profile() as left:
    one = (q @ k.mT) @ v
with mt.profile() as right:
    other = q @ (k.mT @ v)
for name, p in (("(Q K^T) V", left), ("Q (K^T V)", right)):
    print(f"{name}: {p.flops:12,} operations, largest memory {p.peak_bytes:10,} bytes")
print(f"largest difference {np.abs((one - other).numpy()).max():.0e}")

# %% [markdown]
# The factor is $N / d$, and it grows with the text. The softmax stands in the way: it acts on each score, so
# the brackets cannot move. **Linear attention** replaces $\exp(q \cdot k)$ by $\phi(q) \cdot \phi(k)$, where
# $\phi$ makes vectors positive, so that weights are positive too. The usual choice is $\phi(x) = x + 1$ where
# $x > 0$, and $e^x$ elsewhere. From here on, $q$ and $k$ are meant after $\phi$.
#
# A model that writes must not see later tokens. Then each token has a sum of its own, and each sum is the one
# before plus one term:
#
# $$S_t = S_{t-1} + k_t^T v_t \qquad z_t = z_{t-1} + k_t \qquad o_t = \frac{q_t S_t}{q_t \cdot z_t}$$
#
# Vectors are rows, so $k_t^T v_t$ is a matrix $(d_k, d_v)$, and so is $S_t$. This is a recurrent network: a
# state $(S, z)$, an update, and a reading. $z$ sums up the weights, and dividing by them makes a mean.
#
# ### Exercise 1: unroll
#
# Write it as a loop over the tokens with NumPy. The state starts with zeros.


# %%
def unroll(q, k, v):
    """Outputs o (N, dv) from features q, k (N, dk), all positive, and values v (N, dv)."""
    # BEGIN SOLUTION
    s, z, rows = np.zeros((k.shape[1], v.shape[1])), np.zeros(k.shape[1]), []
    for t in range(len(q)):
        s = s + np.outer(k[t], v[t])
        z = z + k[t]
        rows.append(q[t] @ s / (q[t] @ z))
    return np.stack(rows)
    # END SOLUTION


# %% tags=["mistake"]
# Reads before it writes: a token does not see itself.
def unroll(q, k, v):
    s, z, rows = np.zeros((k.shape[1], v.shape[1])), np.zeros(k.shape[1]), []
    for t in range(len(q)):
        rows.append(q[t] @ s / (q[t] @ z + 1e-9))
        s, z = s + np.outer(k[t], v[t]), z + k[t]
    return np.stack(rows)


# %% tags=["mistake"]
# Divides by the weight of the last token alone.
def unroll(q, k, v):
    s, rows = np.zeros((k.shape[1], v.shape[1])), []
    for t in range(len(q)):
        s = s + np.outer(k[t], v[t])
        rows.append(q[t] @ s / (q[t] @ k[t]))
    return np.stack(rows)


# %% tags=["mistake"]
# Sums over all tokens, later ones too.
def unroll(q, k, v):
    return q @ (k.T @ v) / (q @ k.sum(axis=0))[:, None]


# %%
@exercise("unroll")
def check_unroll():
    def attempt(q, k, v):
        with np.errstate(all="ignore"):
            answer = unroll(q, k, v)
        assert answer is not None, "unroll gives nothing back yet: return the outputs, one row for each token"
        assert np.shape(answer) == v.shape, f"{len(q)} tokens: the shape is {np.shape(answer)}, not {v.shape}"
        return np.asarray(answer)

    two = np.array([[1.0, 2.0]])
    answer = attempt(two, two, np.array([[7.0]]))
    assert abs(answer - 7).max() <= 1e-12, f"one token with value 7: the mean of it is 7, not {answer[0, 0]}"
    # Equal keys: every token has the same weight.
    answer = attempt(np.ones((2, 2)), np.ones((2, 2)), np.array([[7.0], [1.0]]))[:, 0]
    assert abs(answer - [7, 4]).max() <= 1e-12, f"equal keys, values 7 and 1: o is {answer}, expected [7, 4]"
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(1)
    q, k, v = rng.uniform(0.1, 2, (7, 3)), rng.uniform(0.1, 2, (7, 3)), rng.standard_normal((7, 5))
    weights = np.tril(q @ k.T)
    expected = weights @ v / weights.sum(axis=1, keepdims=True)
    err = np.abs(attempt(q, k, v) - expected).max(axis=1)
    assert err.max() <= 1e-9, f"7 tokens, dk = 3, dv = 5: token {np.argmax(err)} is off by {err.max():.3f}"
    # END HIDDEN TESTS


# %% [markdown]
# ## 2. Between the two: chunks
#
# The loop does little work, but one token after the other, each time with a small matrix. The **parallel
# form** $\mathrm{tril}(Q K^T)\, V$ is two large products, which machines like, but $N^2$ work. Here
# $\mathrm{tril}$ keeps the lower triangle: the past. The **chunked form** takes $C$ tokens at once. For a
# chunk with rows $Q_c, K_c, V_c$, and $S$ the state before it:
#
# $$O_c = \mathrm{tril}(Q_c K_c^T)\, V_c + Q_c S \qquad\quad S \leftarrow S + K_c^T V_c$$
#
# The first term is what tokens of the chunk say to each other, the second is all that came before. We leave
# out the division by $q \cdot z$ here. (With a column of ones beside $V$, the same code computes it.)
#
# ### Exercise 2: the chunked form
#
# Work with the tensors themselves: `q[a:b]`, `@`, `k.mT` (the transpose), `ops.tril`, and
# `ops.concat(rows, axis=0)`. The check counts operations, so it sees whether you multiply more than needed.
# The last chunk may be shorter.


# %%
def chunked(q, k, v, chunk):
    """tril(q k^T) v as a tensor (N, dv), from q, k (N, dk), v (N, dv), in chunks of so many tokens."""
    # BEGIN SOLUTION
    s, rows = ops.zeros((k.shape[1], v.shape[1]), dtype=v.dtype), []
    for a in range(0, q.shape[0], chunk):
        qc, kc, vc = (x[a : a + chunk] for x in (q, k, v))
        rows.append(ops.tril(qc @ kc.mT) @ vc + qc @ s)
        s = s + kc.mT @ vc
    return ops.concat(rows, axis=0)
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the triangle: inside a chunk, tokens see later ones.
def chunked(q, k, v, chunk):
    s, rows = ops.zeros((k.shape[1], v.shape[1]), dtype=v.dtype), []
    for a in range(0, q.shape[0], chunk):
        qc, kc, vc = (x[a : a + chunk] for x in (q, k, v))
        rows.append((qc @ kc.mT) @ vc + qc @ s)
        s = s + kc.mT @ vc
    return ops.concat(rows, axis=0)


# %% tags=["mistake"]
# Updates the state before it reads it: the chunk is counted twice.
def chunked(q, k, v, chunk):
    s, rows = ops.zeros((k.shape[1], v.shape[1]), dtype=v.dtype), []
    for a in range(0, q.shape[0], chunk):
        qc, kc, vc = (x[a : a + chunk] for x in (q, k, v))
        s = s + kc.mT @ vc
        rows.append(ops.tril(qc @ kc.mT) @ vc + qc @ s)
    return ops.concat(rows, axis=0)


# %% tags=["mistake"]
# Ignores the chunk: right numbers, at the price of the parallel form.
def chunked(q, k, v, chunk):
    return ops.tril(q @ k.mT) @ v


# %%
@exercise("chunked")
def check_chunked():
    def attempt(n, chunk, seed=0, dk=4, dv=4):
        rng = np.random.default_rng(seed)
        q, k, v = (rng.integers(-2, 3, (n, d)).astype(float) for d in (dk, dk, dv))
        with mt.profile() as p:
            answer = chunked(*map(mt.tensor, (q, k, v)), chunk)
        assert answer is not None, "chunked gives nothing back yet: return the rows of all chunks together"
        words = f"{n} tokens in chunks of {chunk}"
        assert answer.shape == v.shape, f"{words}: the shape is {answer.shape}, expected {v.shape}"
        expected = np.tril(q @ k.T) @ v
        wrong = np.abs(np.asarray(answer.numpy()) - expected).max(axis=1)
        row = int(np.argmax(wrong > 1e-9))
        assert wrong.max() <= 1e-9, f"{words}: token {row} is {answer.numpy()[row]}, expected {expected[row]}"
        return p.flops

    for n, chunk in [(1, 1), (2, 1), (2, 2), (4, 2), (5, 2)]:
        attempt(n, chunk)
    done, enough = attempt(64, 8), 2 * 64 * 8 * (4 + 4) + 4 * 64 * 4 * 4 + 2 * 64 * 8
    assert done <= enough, f"64 tokens in chunks of 8 took {done:,} operations; {enough:,} are enough"
    words = (
        f"only {done:,} operations were counted: work in chunks of `chunk` tokens, with tensors, not NumPy"
    )
    assert done >= 3 * enough // 4, words
    # BEGIN HIDDEN TESTS
    for n, chunk in [(3, 9), (17, 4), (12, 5)]:
        attempt(n, chunk, seed=n, dk=3, dv=5)
    # END HIDDEN TESTS


# %% [markdown]
# Now count all three, with the functions of the library, which divide by $q \cdot z$ too. Left: work for $N$
# tokens. Middle: the largest memory at one time. Right: the chunked form with $N = 256$ for every chunk size.
# **Predict** where the right curve starts and ends.


# %%
def features(n, d=32):
    """q, k positive and v, each (1, 1, n, d): one sequence, one head."""
    a, b, c = (mt.tensor(np.random.default_rng(n).standard_normal((1, 1, n, d))) for _ in range(3))
    return elu_plus_one(a), elu_plus_one(b), c


FORMS = {
    "recurrent": lambda q, k, v: recurrent(q, k, v),
    "parallel": lambda q, k, v: parallel(q, k) @ v,
    "chunks of 16": lambda q, k, v: normalised(q, k, v, chunk=16)[0],
}
x = features(256)
outputs = {name: form(*x).numpy() for name, form in FORMS.items()}
gap = max(np.abs(o - outputs["parallel"]).max() for o in outputs.values())
print(f"256 tokens: the three forms differ by at most {gap:.0e}")


# %%
def cost(form, n):
    x = features(n)
    with mt.profile() as p, mt.no_grad():
        form(*x)
    return p.flops, p.peak_bytes / 1024


lengths, sizes = [16, 32, 64, 128, 256, 512], [1, 4, 16, 32, 64, 128, 256]
costs = {name: np.array([cost(form, n) for n in lengths]) for name, form in FORMS.items()}
by_chunk = [cost(lambda q, k, v, c=c: normalised(q, k, v, chunk=c)[0], 256)[0] / 1e6 for c in sizes]
picture = Picture(10, 3)
work, memory, chunks = picture.subplots(1, 3)
for (name, c), colour in zip(costs.items(), (ORANGE, GREY, BLUE)):
    work.loglog(lengths, c[:, 0], "o-", color=colour, label=name)
    memory.loglog(lengths, c[:, 1], "o-", color=colour)
chunks.semilogx(sizes, by_chunk, "o-", color=BLUE, base=2)
for c, y in zip(sizes[::2], by_chunk[::2]):
    chunks.annotate(str(256 // c), (c, y), (-3, 6), textcoords="offset points", ha="right", fontsize=8)
work.set(xlabel="tokens", ylabel="operations")
memory.set(xlabel="tokens", ylabel="largest memory (KiB)")
for ax in (work, memory):
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
chunks.set(xlabel="tokens in a chunk", ylabel="million operations", ylim=(0, 1.2 * max(by_chunk)))
chunks.set_xticks(sizes, sizes, fontsize=8)
chunks.set_title("256 tokens; beside the points: steps", fontsize=9)
chunks.margins(x=0.12)
work.legend(fontsize=8)
picture

# %% [markdown]
# For long texts the parallel form is a line of slope two, the others of slope one. A chunk of 256 *is* the
# parallel form. Small chunks save work, but the number of steps that must wait for each other grows: 256
# steps are the loop. A chunk as large as the head is wide, here 32, costs less than twice the least work and
# leaves few steps. That is how such layers are trained; for writing, they use the loop.
#
# ### What must be kept
#
# A layer that writes keeps a state between tokens. Softmax attention keeps every key and value. How large is
# the state of each layer after $t$ tokens, with 64 channels and 4 heads?


# %%
def numbers(state):
    """How many numbers a state holds."""
    if hasattr(state, "keys"):
        return state.k.size + state.v.size
    return sum(map(numbers, state)) if isinstance(state, tuple) else state.size


COLOURS = {"softmax_attention": GREY, "linear_attention": BLUE, "gla": GREEN, "delta_net": ORANGE}
COLOURS["gated_delta_net"] = PURPLE
x, times = mt.tensor(np.ones((1, 128, 64), "float32")), [1, 2, 4, 8, 16, 32, 64, 128]
picture = Picture(8, 3)
sizes_axes, work_axes = picture.subplots(1, 2)
kept = {}
for name, colour in COLOURS.items():
    layer, size, flops = mt.build(name, dim=64, heads=4, seed=0), [], []
    for t in times:
        _, state = layer.prefill(x[:, :t], layer.start(1))
        with mt.profile() as p:
            layer.step(x[:, 0], state)
        size.append(numbers(state))
        flops.append(p.flops)
    kept[name] = size
    sizes_axes.loglog(times, size, ".-", color=colour, label=name)
    work_axes.loglog(times, flops, ".-", color=colour)
    print(f"{name:18} after 1 token {size[0]:5,} numbers, after 128 {size[-1]:6,}")
sizes_axes.set(xlabel="tokens so far", ylabel="numbers in the state", xticks=times, xticklabels=times)
work_axes.set(xlabel="tokens so far", ylabel="operations for the next token")
work_axes.set(xticks=times, xticklabels=times, ylim=(1e4, 2e5))
sizes_axes.legend(fontsize=7)
picture

# %% [markdown]
# ## 3. A memory that overflows
#
# A state of fixed size cannot hold everything. What does it lose? Forget queries and $\phi$ for a moment:
# keys may have any sign. Ask with a stored key, of length one. $S$ is the sum of all $k_i^T v_i$, so
#
# $$k_j S = \sum_i (k_j \cdot k_i)\, v_i = v_j + \sum_{i \ne j} (k_j \cdot k_i)\, v_i$$
#
# The first part is the **signal**, the rest is **interference**. If the keys are orthogonal, the rest is
# zero. But $d_k$ dimensions have room for only $d_k$ orthogonal keys. Below, twice: the products of all pairs
# of keys, and the values that come back. On the right are the values that were stored.


# %%
def random_keys(rng, *shape):
    """Keys of length one in random directions, (*shape)."""
    k = rng.standard_normal(shape)
    return k / np.linalg.norm(k, axis=-1, keepdims=True)


rng = np.random.default_rng(3)
stored = rng.standard_normal((16, 6))
picture = Picture(10, 2.7)
axes = picture.subplots(1, 5, width_ratios=(1.6, 1, 1.6, 1, 1))
axes[4].imshow(stored, cmap="RdBu_r", vmin=-3, vmax=3)
axes[4].set_title("the values", fontsize=9)
few, many = np.linalg.qr(rng.standard_normal((16, 16)))[0], random_keys(rng, 16, 8)
for left, right, keys, words in ((*axes[:2], few, "16 dimensions"), (*axes[2:4], many, "8 dimensions")):
    left.imshow(keys @ keys.T, cmap="RdBu_r", vmin=-1, vmax=1)
    left.set_title(f"16 keys in {words}", fontsize=9)
    back = keys @ (keys.T @ stored)
    right.imshow(back, cmap="RdBu_r", vmin=-3, vmax=3)
    right.set_title("what comes back", fontsize=9)
    print(f"{words}: mean squared error {np.mean((back - stored) ** 2):.3f}")
for ax in axes:
    ax.set(xticks=[], yticks=[])
picture

# %% [markdown]
# ### Exercise 3: split an answer
#
# Given keys of any length, split $k_j S$ into what the own pair gives and what the others give. Mind the
# length of the key: the own part is $v_j$ only if $k_j$ has length one.


# %%
def split_answer(keys, values, j):
    """Signal (dv,) and interference (dv,) in the answer to key j, from keys (N, dk) and values (N, dv)."""
    # BEGIN SOLUTION
    weights = keys @ keys[j]
    signal = weights[j] * values[j]
    return signal, weights @ values - signal
    # END SOLUTION


# %% tags=["mistake"]
# Takes for granted that keys have length one.
def split_answer(keys, values, j):
    return values[j], keys[j] @ (keys.T @ values) - values[j]


# %% tags=["mistake"]
# Counts the own pair among the others.
def split_answer(keys, values, j):
    return keys[j] @ keys[j] * values[j], keys[j] @ (keys.T @ values)


# %%
@exercise("split_answer")
def check_split_answer():
    keys, values = np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[10.0], [1.0]])
    answer = split_answer(keys, values, 0)
    assert answer is not None, (
        "split_answer gives nothing back yet: return two arrays, signal and interference"
    )
    assert len(answer) == 2, f"split_answer must give two arrays, not {len(answer)}"
    shapes = [np.shape(part) for part in answer]
    assert shapes == [(1,), (1,)], f"with dv = 1 both parts have the shape (1,), yours have {shapes}"
    got = [float(part[0]) for part in answer]
    words = "keys (2, 0) and (1, 1), values 10 and 1, asked with the first key"
    assert abs(got[0] - 40) <= 1e-9, f"{words}: the own pair gives (4) 10 = 40, your signal is {got[0]}"
    assert abs(got[1] - 2) <= 1e-9, f"{words}: the other pair gives (2) 1 = 2, your interference is {got[1]}"
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(2)
    keys, values = rng.standard_normal((5, 3)), rng.standard_normal((5, 4))
    for j in range(5):
        signal, rest = split_answer(keys, values, j)
        expected = sum((keys[j] @ keys[i]) * values[i] for i in range(5) if i != j)
        err = np.abs(rest - expected).max() + np.abs(signal - keys[j] @ keys[j] * values[j]).max()
        assert err <= 1e-9, f"5 random keys, asked with number {j}: the parts are off by {err:.3f}"
    # END HIDDEN TESTS


# %% [markdown]
# How bad does it get? For random keys of length one, $k_j \cdot k_i$ has mean 0 and variance $1/d_k$. With
# $n$ pairs and values of variance 1, the squared error is $(n - 1) / d_k$ on average. An error of 1 is what
# you get for always answering zero. **Predict:** what does softmax attention do with the same keys? We give
# it $\exp(20\, k_i \cdot k_j)$, a kernel far from linear.

# %%
pairs, widths = np.array([2, 4, 8, 16, 32, 64]), (8, 32)
picture = Picture(8, 3)
errors = {}
for ax, dk in zip(picture.subplots(1, 2, sharey=True), widths):
    for n in pairs:
        rng = np.random.default_rng(n)
        keys, values = random_keys(rng, 50, n, dk), rng.standard_normal((50, n, 4))
        scores = keys @ keys.mT
        for name, weights in (("linear", scores), ("softmax", ops.softmax(20 * scores))):
            errors.setdefault((name, dk), []).append(np.mean((weights @ values - values) ** 2))
    ax.loglog(pairs, (pairs - 1) / dk, color=BLUE, lw=1, label="(n - 1) / dk")
    ax.loglog(pairs, errors["linear", dk], "o", color=BLUE, label="linear")
    ax.loglog(pairs, errors["softmax", dk], "o-", color=GREY, label="softmax")
    ax.axhline(1, color=ORANGE, ls="--", lw=1, label="always answer zero")
    ax.set(xlabel="pairs in the memory", title=f"keys of width {dk}", ylim=(1e-10, 100))
    ax.set_xticks(pairs, pairs)
    ax.minorticks_off()
    last = {name: errors[name, dk][-1] for name in ("linear", "softmax")}
    print(f"width {dk}, 64 pairs: linear {last['linear']:.2f}, softmax {last['softmax']:.1e}")
picture.axes[0].legend(fontsize=8, loc="lower right")
picture.axes[0].set_ylabel("mean squared error")
picture

# %% [markdown]
# The points lie on the line: capacity is the width of the keys. Beyond that, the memory answers worse than
# silence. Softmax attention kept every pair, and its sharp kernel silences keys that are not quite the same.
# It pays with a state that grows.
#
# ## 4. The delta rule: look before you write
#
# Interference has a cousin that is worse. Write a new value to an *old* key: the sum returns both. Linear
# attention cannot take anything back. The **delta rule** first reads what the memory says for this key, and
# writes only the difference:
#
# $$S_t = S_{t-1} + \beta_t\, k_t^T \left(v_t - k_t S_{t-1}\right)
#   = \left(I - \beta_t\, k_t^T k_t\right) S_{t-1} + \beta_t\, k_t^T v_t$$
#
# $\beta_t$ between 0 and 1 says how far to move. The second form shows what happens: the entry at $k_t$
# is multiplied by $1 - \beta_t$, every direction orthogonal to $k_t$ stays, and the new value is added.
#
# ### Exercise 4: one step of the delta rule


# %%
def delta_step(s, k, v, beta):
    """The memory s (dk, dv) after key k (dk,), of length one, was given value v (dv,) with strength beta."""
    # BEGIN SOLUTION
    return s + beta * np.outer(k, v - k @ s)
    # END SOLUTION


# %% tags=["mistake"]
# Adds without looking, as linear attention does.
def delta_step(s, k, v, beta):
    return s + beta * np.outer(k, v)


# %% tags=["mistake"]
# Lets the whole memory fade, not only the entry at k.
def delta_step(s, k, v, beta):
    return (1 - beta) * s + beta * np.outer(k, v)


# %% tags=["mistake"]
# Erases the old entry completely whatever beta is.
def delta_step(s, k, v, beta):
    return s + np.outer(k, beta * v - k @ s)


# %%
@exercise("delta_step")
def check_delta_step():
    for beta, expected in ((1.0, 5.0), (0.5, 4.0), (0.0, 3.0)):
        s = delta_step(np.array([[3.0]]), np.ones(1), np.array([5.0]), beta)
        assert s is not None, "delta_step gives nothing back yet: return the new memory, a matrix (dk, dv)"
        assert np.shape(s) == (1, 1), f"with dk = dv = 1 the shape is {np.shape(s)}, expected (1, 1)"
        got = s[0, 0]
        words = f"the entry is 3, the new value 5, beta = {beta}"
        assert abs(got - expected) <= 1e-9, f"{words}: it becomes {got}, expected {expected}"
    s = delta_step(np.array([[3.0], [8.0]]), np.array([1.0, 0.0]), np.array([5.0]), 1.0)
    words = "entries 3 and 8 at orthogonal keys, the first gets 5"
    assert np.abs(s[:, 0] - [5, 8]).max() <= 1e-9, f"{words}: they become {s[:, 0]}, expected [5, 8]"
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(4)
    keys, values, betas = random_keys(rng, 6, 3), rng.standard_normal((6, 4)), rng.uniform(0, 2, 6)
    s = np.zeros((3, 4))
    for k, v, beta in zip(keys, values, betas):
        s = delta_step(s, k, v, beta)
    heads = (a.reshape((1, 1, 6, -1)) for a in (keys, keys, values, betas))
    expected = ops.delta_rule(*map(mt.tensor, heads))[1].numpy()[0, 0]
    err = np.abs(s - expected).max()
    assert err <= 1e-9, f"after 6 writes with dk = 3 and dv = 4 the memory is off by {err:.3f}"
    # END HIDDEN TESTS


# %% [markdown]
# You may know this rule by another name. Call $L(S) = \frac{1}{2} |k S - v|^2$ the error of the memory at one
# pair. The delta rule is one step of gradient descent on it, with rate $\beta$. Additive writing is a step
# too, on the loss $-(k S) \cdot v$, which has no minimum.

# %%
rng = np.random.default_rng(5)
s, key, value, beta = rng.standard_normal((4, 3)), random_keys(rng, 4), rng.standard_normal(3), 0.7
slope = mt.grad(lambda s: ops.square(key @ s - value).sum() / 2)(mt.tensor(s)).numpy()
heads = (np.reshape(a, (1, 1, 1, -1)) for a in (key, key, value, beta))
written = ops.delta_rule(*map(mt.tensor, heads), state=mt.tensor(s[None, None]))[1].numpy()[0, 0]
print(f"gradient descent and delta rule differ by {np.abs(s - beta * slope - written).max():.0e}")

# %% [markdown]
# ## 5. Gates: forget on purpose
#
# The delta rule repairs one entry at a time. Sometimes all of it is out of date: a new paragraph, a new
# speaker. A **gate** multiplies the state by $\alpha_t$ between 0 and 1 before each write:
#
# $$S_t = \mathrm{diag}(\alpha_t)\, S_{t-1} + k_t^T v_t$$
#
# In `gla`, $\alpha_t$ has one number for each key channel, computed from the token. `gated_delta_net` has one
# number for each head, and then applies the delta rule to the faded memory.
#
# Here is a memory for the temperature of three rooms, with orthogonal keys. After each report we read all
# three. At time 16 the house is sold, and what was known should be gone. Dotted: the truth.

# %%
rng = np.random.default_rng(6)
rooms, reports = rng.integers(0, 3, 24), rng.integers(10, 30, 24).astype(float)
rooms[:3], rooms[16:20] = [0, 1, 2], [0, 1, 0, 1]
truth = np.zeros((3, 24))
for t in range(24):
    truth[:, t] = truth[:, t - 1] if t not in (0, 16) else 0
    truth[rooms[t], t] = reports[t]
# Three readers of one memory, as a batch: reader b asks with key b every time.
q = np.broadcast_to(np.eye(3)[:, None, None], (3, 1, 24, 3))
k = np.broadcast_to(np.eye(3)[rooms], (3, 1, 24, 3))
v, one = np.broadcast_to(reports[:, None], (3, 1, 24, 1)), np.ones((3, 1, 24, 1))
sold = np.where(np.arange(24) == 16, -60.0, 0.0)[:, None] * one
q, k, v, one, sold = map(mt.tensor, (q, k, v, one, sold))
MEMORIES = {
    "sum": ops.gated_scan(q, k, v, 0 * one),
    "fading sum (0.7)": ops.gated_scan(q, k, v, np.log(0.7) * one),
    "delta rule": ops.delta_rule(q, k, v, one),
    "delta rule, gate at 16": ops.delta_rule(q, k, v, one, sold),
}
picture = Picture(10, 2.8)
for ax, (name, (o, _)) in zip(picture.subplots(1, 4), MEMORIES.items()):
    for room, colour in enumerate((BLUE, ORANGE, GREEN)):
        ax.step(range(24), o.numpy()[room, 0, :, 0], color=colour, where="post", label=f"room {room}")
        ax.step(range(24), truth[room], ":k", where="post", lw=1)
    wrong = np.abs(o.numpy()[:, 0, :, 0] - truth).mean()
    ax.axvline(16, color=GREY, lw=0.8)
    ax.set_title(f"{name}\nmean error {wrong:.1f}", fontsize=9)
    ax.set(xlabel="time", ylim=(-3, 75))
picture.axes[2].legend(fontsize=8)
picture.axes[0].set_ylabel("answer (degrees)")
picture

# %% [markdown]
# The sum piles up reports. Fading bounds the pile, but also loses rooms that had no news. The delta rule
# follows every report exactly, and after the sale it still believes in old rooms. The last memory has both.
#
# Orthogonal keys flatter the delta rule. With random keys, more than there are dimensions, a write also
# disturbs its neighbours. So ask *how old* a pair can get: 64 pairs in 32 dimensions, 50 draws.

# %%
rng = np.random.default_rng(7)
keys, values = random_keys(rng, 50, 1, 64, 32), rng.standard_normal((50, 1, 64, 4))
k, v, one = mt.tensor(keys), mt.tensor(values), mt.tensor(np.ones((50, 1, 64, 1)))
states = {
    "sum": (BLUE, ops.gated_scan(k, k, v, 0 * one)[1]),
    "fading sum (0.95)": (GREEN, ops.gated_scan(k, k, v, np.log(0.95) * one)[1]),
    "delta rule": (ORANGE, ops.delta_rule(k, k, v, one)[1]),
    "fading delta rule": (PURPLE, ops.delta_rule(k, k, v, one, np.log(0.95) * one)[1]),
}
picture = Picture(6, 3)
axes = picture.subplots()
for name, (colour, s) in states.items():
    age = ((k @ s - v) ** 2).numpy().mean(axis=(0, 1, 3))[::-1]
    axes.plot(age, color=colour, label=name)
    print(f"{name:18} last pair {age[0]:.3f}, last 16 {age[:16].mean():.3f}, first 16 {age[48:].mean():.3f}")
axes.axhline(1, color=GREY, ls="--", lw=1, label="always answer zero")
axes.set(xlabel="writes since the pair was stored", ylabel="mean squared error", ylim=(0, 3.9))
axes.legend(fontsize=8, ncols=3, loc="upper center")
picture

# %% [markdown]
# The sum treats all ages alike, and all of them badly: near $63/32$. Fading gives up the old to keep the
# young. The delta rule is exact for the last pair, without a rate that someone had to choose, but its oldest
# pairs come back worse than with fading: later writes push them about and nothing makes them smaller. Both
# together are about as good as the delta rule on the young, and as fading on the old.
#
# How fast do the gates of the library forget before training? A decay $\alpha$ halves the memory after
# $\log 0.5 / \log \alpha$ tokens.

# %%
x = mt.tensor(np.random.default_rng(8).standard_normal((1, 256, 64)).astype("float32"))
layer = mt.build("gla", dim=64, heads=4, seed=0)
decay = ops.sigmoid(layer.wa2(layer.wa1(x))).numpy() ** (1 / layer.tau)
print(f"gla: on average, half of the memory is left after {np.log(0.5) / np.log(decay).mean():.0f} tokens")
g = mt.build("gated_delta_net", dim=64, heads=4, seed=0).gates(x)[1].numpy().mean(axis=(0, 2, 3))
print("gated_delta_net, one number for each head:", np.round(np.log(0.5) / g, 1), "tokens")

# %% [markdown]
# ## 6. Who can recall? Train and see
#
# **Multi-query associative recall**: a text of pairs, then some of the keys again. The model must name the
# value. Ids below 16 are keys, from 16 on values, 0 is filling.

# %%
plain = {n: mt.tasks.MQAR(vocab=32, length=4 * n, k=n, a=1.0) for n in (2, 4, 8)}
again = {n: mt.tasks.MQAR(vocab=32, length=6 * n, k=n, a=1.0, rewritten=n) for n in (2, 4)}


def draw(task, rng, batch):
    """Tokens and targets (batch, N); a target of -1 does not count."""
    x, y, w = task.sample(rng, batch)
    return x, np.where(w > 0, y, -1)


x, y = draw(plain[4], np.random.default_rng(0), 1)
print("tokens  " + " ".join(f"{i:3}" for i in x[0]))
print("answers " + " ".join(f"{i:3}" if i >= 0 else "  ." for i in y[0]))

# %% [markdown]
# The smallest model that can do it: each token is shown together with the one before it, so that a value
# knows its key. (Real models use a short convolution or a first layer.) Then one mixer with one head, a norm,
# and the output.
#
# A model must first find out that a query should match a key. That search takes most of the training time
# and is not our subject, so `matched` starts all mixers with it done: keys look at the token before, queries
# at the token itself, through the same matrix. What they store, and how, is left to training. The short
# convolutions inside the delta layers are cut down to one token.


# %%
class Recaller(Module):
    def __init__(self, mixer, vocab=32, dim=32, seed=0):
        self.embedding = Embedding(vocab, dim // 2, seed, std=1.0)
        self.mixer, self.norm = mixer, RMSNorm(dim)
        self.head = Linear(dim, vocab, False, seed)

    def forward(self, ids):
        """Tokens (B, N) -> scores of all ids (B, N, vocab)."""
        e = self.embedding(np.pad(ids, ((0, 0), (1, 0))))
        return self.head(self.norm(self.mixer(ops.concat([e[:, :-1], e[:, 1:]], axis=-1))))


def matched(mixer):
    """The mixer with keys from the first half of the channels, and queries from the second, alike."""
    half = mixer.wq.weight.shape[0] // 2
    wq, wk = mixer.wq.weight.data, mixer.wk.weight.data
    wq[:half], wq[half:], wk[half:] = 0, 3 * wq[half:], 0
    wk[:half] = wq[half:]
    for conv in ("conv_q", "conv_k", "conv_v"):
        if hasattr(mixer, conv):
            getattr(mixer, conv).weight.data[:] = 1
    return mixer


# %%
def mixers(dk, seed=0):
    """Four mixers with one head, whose keys have width dk."""
    shared, part = dict(dim=32, heads=1, seed=seed), dk / 32
    yield "softmax_attention", mt.build("softmax_attention", head_dim=dk, **shared)
    yield "linear_attention", mt.build("linear_attention", expand_k=part, chunk=8, **shared)
    yield "gla", mt.build("gla", expand_k=part, chunk=8, **shared)
    yield "delta_net", mt.build("delta_net", expand_k=part, width=1, chunk=8, **shared)


def train(mixer, tasks, rounds, lr=0.02, seed=0):
    """The accuracy on new samples of each task, after training on all of them in turn."""
    model, rng, steps = Recaller(matched(mixer), seed=seed), np.random.default_rng(seed), rounds * len(tasks)
    optimizer = mt.train.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        # Half of the time at the full rate, then down to zero.
        optimizer.lr = lr * min(1, 2 * (1 - step / steps))
        x, y = draw(list(tasks.values())[step % len(tasks)], rng, 32)
        loss = ops.cross_entropy(model(x), y, ignore=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = {}
    for n, task in tasks.items():
        x, y = draw(task, np.random.default_rng(99), 128)
        with mt.no_grad():
            found[n] = float(np.mean((model(x).numpy().argmax(axis=-1) == y)[y >= 0]))
    return found


# %% [markdown]
# **Predict:** with keys of width 4, who still recalls 8 pairs? And with width 16? One seed each, 120 steps.

# %%
recall = {}
for dk in (4, 16):
    for name, mixer in mixers(dk):
        recall[name, dk] = train(mixer, plain, rounds=40)
        shown = ", ".join(f"{n} pairs {a:.2f}" for n, a in recall[name, dk].items())
        print(f"keys of width {dk:2}  {name:18} {shown}")

# %%
picture = Picture(8, 3)
for ax, dk in zip(picture.subplots(1, 2, sharey=True), (4, 16)):
    for name in ("softmax_attention", "linear_attention", "gla", "delta_net"):
        ax.plot(*zip(*recall[name, dk].items()), "o-", color=COLOURS[name], label=name)
    ax.plot([2, 4, 8], [1 / 2, 1 / 4, 1 / 8], "k:", label="guess one of the values")
    ax.set(xlabel="pairs", xticks=[2, 4, 8], title=f"keys of width {dk}", ylim=(0, 1.05))
picture.axes[0].set_ylabel("accuracy")
picture.axes[1].legend(fontsize=8, loc="center right")
picture

# %% [markdown]
# Now every key gets a second value after all first ones, and the later value is the right answer. So half of
# what is stored is out of date. **Predict:** softmax attention was perfect so far. How good will it be? Keys
# have width 8. One seed each, 100 steps.

# %%
latest = {name: train(mixer, again, rounds=50) for name, mixer in mixers(8)}
gated = mt.build("gated_delta_net", dim=32, heads=1, expand_k=8 / 32, expand_v=4, width=1, chunk=8, seed=0)
latest["gated_delta_net"] = train(gated, again, rounds=50)
picture = Picture(7, 2.6)
axes = picture.subplots()
axes.barh(list(latest), [a[4] for a in latest.values()], color=[COLOURS[name] for name in latest])
for i, a in enumerate(latest.values()):
    axes.text(a[4] - 0.01, i, f"{a[4]:.2f}", ha="right", va="center", color="white", fontsize=10)
axes.axvline(0.5, color="k", ls=":", lw=1)
axes.set_title("dotted: old or new, by a coin", fontsize=9)
axes.set(xlabel="accuracy, 4 keys written twice", xlim=(0, 1))
axes.invert_yaxis()
picture

# %% [markdown]
# Softmax attention finds both values of the key and cannot tell which came later: this model has no
# positions, and a softmax over equal scores is a mean. Linear attention sums both as well. A gate lets the
# older one fade. The delta rule replaces it: reading needs no order, because the old value is gone.
#
# ## 7. Your own gated layer
#
# ### Exercise 5: all tokens at once, with gradients
#
# `GatedLayer` can take one step: its gate is $\alpha_t = \mathrm{sigmoid}(x_t W_g)$, one number for each key
# channel. Write the pass over a whole sequence: a loop like that of `step`, or a chunked form if you like.
# `step` switches gradients off, so calling it does not help. `ops.split_heads(x, H)` makes (B, H, N, d) of
# (B, N, D), `ops.merge_heads` goes back, and `ops.stack(rows, axis=2)` puts tokens side by side.


# %%
class GatedLayer(Module):
    def __init__(self, dim, *, heads=2, seed=0, dtype="float32"):
        rng, self.heads = np.random.default_rng(seed), heads
        self.wq, self.wk, self.wv, self.wg, self.wo = (
            Linear(dim, dim, False, rng, dtype=dtype) for _ in range(5)
        )

    def start(self, batch):
        """The empty memory (B, H, d, d)."""
        d = self.wq.weight.shape[0] // self.heads
        return ops.zeros((batch, self.heads, d, d), dtype=self.wq.weight.dtype)

    def step(self, x, s):
        """One token x (B, D) after those in the memory s: the output (B, D), and the new memory."""
        with mt.no_grad():
            # q, k, v, alpha: (B, H, d)
            q, k, v, a = (w(x).reshape((*s.shape[:3],)) for w in (self.wq, self.wk, self.wv, self.wg))
            s = ops.sigmoid(a)[..., None] * s + k[..., None] * v[:, :, None]
            return self.wo((q[:, :, None] @ s).reshape(x.shape)), s

    def forward(self, x, *, rng=None):
        return gated_forward(self, x)


layer = GatedLayer(4, seed=0)
print("one token:", layer.step(mt.tensor(np.ones((1, 4), "float32")), layer.start(1))[0].numpy())


# %%
def gated_forward(layer, x):
    """The outputs (B, N, D) for all tokens x (B, N, D), starting with an empty memory."""
    # BEGIN SOLUTION
    # q, k, v, a: (B, H, N, d)
    q, k, v, a = (ops.split_heads(w(x), layer.heads) for w in (layer.wq, layer.wk, layer.wv, layer.wg))
    a, s, rows = ops.sigmoid(a), layer.start(x.shape[0]), []
    for t in range(x.shape[1]):
        s = a[:, :, t, :, None] * s + k[:, :, t, :, None] * v[:, :, t, None]
        rows.append((q[:, :, t, None] @ s)[:, :, 0])
    return layer.wo(ops.merge_heads(ops.stack(rows, axis=2)))
    # END SOLUTION


# %% tags=["mistake"]
# Calls `step` for each token: the right numbers, and no gradients.
def gated_forward(layer, x):
    s, rows = layer.start(x.shape[0]), []
    for t in range(x.shape[1]):
        y, s = layer.step(x[:, t], s)
        rows.append(y)
    return ops.stack(rows, axis=1)


# %% tags=["mistake"]
# Lets the new pair fade too.
def gated_forward(layer, x):
    q, k, v, a = (ops.split_heads(w(x), layer.heads) for w in (layer.wq, layer.wk, layer.wv, layer.wg))
    a, s, rows = ops.sigmoid(a), layer.start(x.shape[0]), []
    for t in range(x.shape[1]):
        s = a[:, :, t, :, None] * (s + k[:, :, t, :, None] * v[:, :, t, None])
        rows.append((q[:, :, t, None] @ s)[:, :, 0])
    return layer.wo(ops.merge_heads(ops.stack(rows, axis=2)))


# %% tags=["mistake"]
# Every token reads the last memory.
def gated_forward(layer, x):
    q, k, v, a = (ops.split_heads(w(x), layer.heads) for w in (layer.wq, layer.wk, layer.wv, layer.wg))
    a, s = ops.sigmoid(a), layer.start(x.shape[0])
    for t in range(x.shape[1]):
        s = a[:, :, t, :, None] * s + k[:, :, t, :, None] * v[:, :, t, None]
    return layer.wo(ops.merge_heads(q @ s))


# %% tags=["mistake"]
# Forgets the gate.
def gated_forward(layer, x):
    q, k, v = (ops.split_heads(w(x), layer.heads) for w in (layer.wq, layer.wk, layer.wv))
    return layer.wo(ops.merge_heads(ops.tril(q @ k.mT) @ v))


# %%
@exercise("gated_forward")
def check_gated_forward():
    layer = GatedLayer(4, heads=2, seed=1, dtype="float64")
    x = mt.tensor(np.random.default_rng(0).standard_normal((1, 3, 4)))
    s = layer.start(1)
    for n in (1, 2, 3):
        answer = gated_forward(layer, x[:, :n])
        assert answer is not None, "gated_forward gives nothing back yet: return the outputs of all tokens"
        assert answer.shape == (1, n, 4), f"x is (1, {n}, 4), and so must be the output, not {answer.shape}"
        expected, s = layer.step(x[:, n - 1], s)
        got, wanted = answer.numpy()[0, n - 1], expected.numpy()[0]
        err = np.abs(got - wanted).max()
        assert err <= 1e-9, f"{n} tokens: the last output is {got}, but step by step it is {wanted}"
    claims = ("causal", "streams", "batch_independent")
    check_variant(GatedLayer, kind="token_mixer", claims=claims, examples=NOTEBOOK)


# %%
narrow = {name: a[8] for (name, dk), a in recall.items() if dk == 4}
wide = {name: a[8] for (name, dk), a in recall.items() if dk == 16}
growth = {name: costs[name][-1, 0] / costs[name][-2, 0] for name in costs}
rows = [
    (
        "*Transformers are RNNs* (arXiv:2006.16236), 3.2 to 3.4: linear attention can be written as a "
        "recurrent network, with time linear in $N$ and a state of constant size",
        f"recurrent, parallel and chunked differ by {gap:.0e}; from 256 to 512 tokens the work grows "
        f"{growth['recurrent']:.1f} times as a loop, {growth['parallel']:.1f} times in parallel; after 128 "
        f"tokens {kept['linear_attention'][-1]:,} numbers are kept, by softmax "
        f"{kept['softmax_attention'][-1]:,}",
    ),
    (
        "*Gated Linear Attention* (arXiv:2312.06635), 2: the chunked form lies between the parallel and the "
        "recurrent one, in work and in steps",
        f"256 tokens: {by_chunk[0]:.1f} million operations in 256 steps, {by_chunk[3]:.1f} in 8, "
        f"{by_chunk[-1]:.1f} in one",
    ),
    (
        "*Zoology* (arXiv:2312.04927): attention solves associative recall with constant width; models with "
        "gated convolutions need a width that grows with the length",
        f"8 pairs, keys of width 4 and 16: softmax {narrow['softmax_attention']:.2f} and "
        f"{wide['softmax_attention']:.2f}; linear attention, which has a fixed state too, "
        f"{narrow['linear_attention']:.2f} and {wide['linear_attention']:.2f}. Without training, 64 pairs: "
        f"error {errors['linear', 8][-1]:.1f} in width 8, {errors['linear', 32][-1]:.1f} in width 32",
    ),
    (
        "*DeltaNet* (arXiv:2406.06484), abstract: the delta rule recalls better than the additive update",
        f"8 pairs, keys of width 4: delta rule {narrow['delta_net']:.2f}, linear "
        f"{narrow['linear_attention']:.2f}, with gates (gla) {narrow['gla']:.2f}; keys written twice: "
        f"{latest['delta_net'][4]:.2f}, {latest['linear_attention'][4]:.2f}, {latest['gla'][4]:.2f}",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# One seed each, tiny models, and a start that already matches keys: the accuracies show an order, not a size.
# The papers train models with several layers on thousands of ids.
#
# ## On your own
#
# - Build softmax attention with `position="alibi"` or `"rope"` for the keys that are written twice. Which of
#   them lets it prefer the later value? Why might one head not be enough?
# - Train `linear_attention` with `normalize=False` and `features="identity"` on `plain`. Signed keys can be
#   orthogonal, positive ones hardly. Does it recall more?
# - In section 5, let the delta rule go through the 64 pairs ten times with a small beta. To which memory does
#   it converge?
# - Leave out `matched` and train with 600 steps and three seeds. Who finds the match by itself, and when?
# - Give `GatedLayer` a chunked form and the option `chunk`, and add the claim `"chunked"`. Take care that no
#   exponent is positive.
#
# ## Where to go next
#
# Read `minitf/ops/scans.py`: `gated_scan` and `delta_rule` are the chunked forms with gates, in some thirty
# lines each. `minitf show gated_delta_net` shows a layer that modern language models are built of. Mamba-2
# (`minitf show mamba2_ssd`) comes to the same recurrence from state spaces.
