# %% [markdown]
# # Scan state spaces: from S4D to the selective scan
#
# **What you will do.** Turn a differential equation into a layer. Run it as a recurrence and as one long
# convolution. Look at what it remembers. Then give it a task that it cannot do, find out why, and mend it:
# the selective scan of Mamba.
#
# **What you will learn.** Discretisation by zero-order hold; kernels and the Fourier transform; timescales;
# a memory that holds a window of the past; why a time-invariant system cannot select; the associative scan;
# and how a selective state space is attention in disguise.
#
# **What you need.** Python, NumPy, complex exponentials and $x' = a x$. Lesson `02_build_attention` helps
# at the end. Run the cells from top to bottom. The five exercises check themselves.
#
# **Variants.** `s4d`, `lmu_memory`, `selective_scan`, `mamba_block`, `mamba2_ssd`

# %%
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf import nn
from minitf.mixers import lmu_memory, mamba2_ssd, s4d
from minitf.tasks import SelectiveCopy
from minitf.testing import check_variant, exercise
from minitf.viz import Picture
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
np.set_printoptions(precision=4, suppress=True)
NOTEBOOK = 8  # examples that a check draws

# %% [markdown]
# ## 1. A bucket with a hole
#
# Water flows into a bucket at rate $u$ and leaks out through a hole. The level $x$ follows
#
# $$x'(\tau) = a\,x(\tau) + b\,u(\tau), \qquad a < 0$$
#
# $\tau$ is time, $a$ says how fast the bucket leaks, $b$ how much of the flow goes in. This is a **state
# space** with one state. It remembers $u$ for a time of about $1/|a|$.
#
# Tokens come in steps, one every $\Delta$ ("delta", the *step size*). Between two steps $u$ is constant.
# The obvious rule is that of Euler: $x \leftarrow x + \Delta\,(a x + b u)$. What does it do when $\Delta$
# grows? Make a guess, then look. Here $a=-1$, $b=1$, $u=1$, so the level must rise to 1 and stay there.

# %%
picture = Picture(7.5, 2.4)
time = np.linspace(0, 12, 400)
for axes, dt in zip(picture.subplots(1, 3, sharey=True), (0.25, 1.5, 2.2)):
    steps = np.arange(0, 12.01, dt)
    level = np.zeros(len(steps))
    for t in range(1, len(steps)):
        level[t] = level[t - 1] + dt * (-level[t - 1] + 1)
    axes.plot(time, 1 - np.exp(-time), color=GREY, label="exact")
    axes.plot(steps, level, "o-", color=ORANGE, markersize=3, label="Euler")
    axes.set(xlabel="time", title=f"step {dt}", ylim=(-1.7, 4.2))
    if dt == 0.25:
        axes.set_ylabel("level x")
        axes.legend(fontsize=8)
picture

# %% [markdown]
# Euler overshoots, and beyond $\Delta = 2/|a|$ it explodes. A network that learns its step size can wander
# there. But where $u$ is constant, the equation has an exact solution. One step of length $\Delta$ is
#
# $$x_t = \bar a\,x_{t-1} + \bar b\,u_t, \qquad \bar a = e^{\Delta a}, \qquad
# \bar b = \frac{e^{\Delta a} - 1}{a}\,b$$
#
# That is the **zero-order hold**. For $a<0$ we have $0 < \bar a < 1$, whatever the step.
#
# ### Exercise 1: the zero-order hold
#
# Write it for $b = 1$. `a` may be complex: then the state turns while it decays. `np.expm1(z)` is $e^z - 1$
# without loss of digits for a small $z$.


# %%
def hold(a, dt):
    """abar and bbar for a step dt and b = 1; a: a real or complex number, or an array of them."""
    # BEGIN SOLUTION
    return np.exp(dt * a), np.expm1(dt * a) / a
    # END SOLUTION


# %% tags=["mistake"]
# Euler for the input, as if b were constant times the step.
def hold(a, dt):
    return np.exp(dt * a), dt * np.ones_like(a)


# %% tags=["mistake"]
# Forgets to divide by a.
def hold(a, dt):
    return np.exp(dt * a), np.expm1(dt * a)


# %% tags=["mistake"]
# Euler for the state.
def hold(a, dt):
    return 1 + dt * a, np.expm1(dt * a) / a


# %%
@exercise("hold")
def check_hold():
    answer = hold(-2.0, 0.5)
    assert answer is not None, "hold gives nothing back yet: return two numbers, abar and bbar"
    for name, found, expected in zip(("abar", "bbar"), answer, (np.exp(-1.0), (1 - np.exp(-1.0)) / 2)):
        assert abs(found - expected) <= 1e-9, (
            f"for a = -2 and dt = 0.5, {name} is {expected:.4f}, not {found:.4f}"
        )
    level = 0.0
    for _ in range(20):
        level = answer[0] * level + answer[1]
    assert abs(level - 0.5) <= 1e-3, f"with u = 1 the level must settle at 1 / |a| = 0.5, not {level:.4f}"
    # BEGIN HIDDEN TESTS
    a = np.array([-0.5 + 3j, -1 + 0j, -0.1 - 7j])
    (whole, whole_b), (half, half_b) = hold(a, 0.4), hold(a, 0.2)
    apart = np.abs([whole - half**2, whole_b - (half * half_b + half_b)]).max()
    assert apart <= 1e-9, f"two half steps must be one step; for complex a they differ by {apart:.4f}"
    # END HIDDEN TESTS


# %% [markdown]
# ## 2. One map, three programs
#
# One bucket is a poor memory. Take several, each with a complex $a_m$, and read them with weights $c_m$.
# Complex states come in conjugate pairs, and the sum of a pair is twice the real part. So keep one of each
# pair:
#
# $$x_{m,t} = \bar a_m x_{m,t-1} + \bar b_m u_t, \qquad y_t = 2\,\mathrm{Re} \sum_m c_m x_{m,t}$$
#
# This is **S4D**: a *diagonal* state space, since no state sees another. Now unroll it. What arrived $l$
# steps ago has been multiplied by $\bar a_m$ exactly $l$ times, so
#
# $$y_t = \sum_{l=0}^{t} K_l\,u_{t-l}, \qquad K_l = 2\,\mathrm{Re} \sum_m c_m\,\bar b_m\,\bar a_m^{\,l}$$
#
# The recurrence is a **convolution** with a fixed **kernel** $K$. $K$ is also the *impulse response*: what
# comes out if a single 1 goes in.
#
# ### Exercise 2: the kernel
#
# Write $K_0 \ldots K_{n-1}$. Powers of all $\bar a_m$ at once: `abar ** np.arange(n)[:, None]` has shape
# (n, m).


# %%
def kernel(abar, bbar, c, n):
    """K (n,), real, from complex abar, bbar and c, each (m,)."""
    # BEGIN SOLUTION
    powers = abar ** np.arange(n)[:, None]
    return 2 * (powers @ (c * bbar)).real
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the conjugate partners: the factor 2.
def kernel(abar, bbar, c, n):
    return (abar ** np.arange(n)[:, None] @ (c * bbar)).real


# %% tags=["mistake"]
# Begins with the first power: one step late.
def kernel(abar, bbar, c, n):
    return 2 * (abar ** np.arange(1, n + 1)[:, None] @ (c * bbar)).real


# %% tags=["mistake"]
# Leaves it complex.
def kernel(abar, bbar, c, n):
    return 2 * (abar ** np.arange(n)[:, None] @ (c * bbar))


# %%
def recurrence(abar, bbar, c, u):
    """y (N,) from u (N,), step by step."""
    x, y = np.zeros(len(abar), complex), []
    for u_t in u:
        x = abar * x + bbar * u_t
        y.append(2 * (c @ x).real)
    return np.array(y)


@exercise("kernel")
def check_kernel():
    one = np.ones(1, complex)
    found = kernel(0.5j * one, one, one, 3)
    assert found is not None, "kernel gives nothing back yet: return an array of n real numbers"
    assert np.shape(found) == (3,), f"for n = 3 the shape must be (3,), not {np.shape(found)}"
    assert not np.iscomplexobj(found), f"the kernel must be real, and yours holds {found[0]}"
    expected = np.array([2.0, 0.0, -0.5])
    assert np.abs(found - expected).max() <= 1e-9, (
        f"for one state with abar = 0.5i, bbar = c = 1 the kernel is {expected}, not {found}"
    )
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(1)
    a, c = -0.5 + 1j * rng.uniform(0, 9, 5), rng.standard_normal(5) + 1j * rng.standard_normal(5)
    abar, bbar = np.exp(0.1 * a), (np.exp(0.1 * a) - 1) / a
    impulse = recurrence(abar, bbar, c, np.eye(1, 30)[0])
    apart = np.abs(kernel(abar, bbar, c, 30) - impulse).max()
    assert apart <= 1e-9, f"five states: it differs from the impulse response by {apart:.4f}"
    # END HIDDEN TESTS


# %% [markdown]
# The sum over $l$ costs $N^2$ products. The Fourier transform turns a convolution into a product, one for
# each frequency, and costs about $N \log N$. A first try: multiply the transforms and go back. A pulse goes
# in at step 44 of 48. What could go wrong?

# %%
rng = np.random.default_rng(0)
a, c = -0.5 + 1j * np.pi * np.arange(4), rng.standard_normal(4) + 1j * rng.standard_normal(4)
abar, bbar = np.exp(0.1 * a), (np.exp(0.1 * a) - 1) / a
u = np.zeros(48)
u[44] = 1.0
K = recurrence(abar, bbar, c, np.eye(1, 48)[0])
naive = np.fft.irfft(np.fft.rfft(u) * np.fft.rfft(K), 48)
picture = Picture(6.5, 2.3)
axes = picture.subplots()
axes.plot(naive, "o-", color=ORANGE, markersize=3, label="first try")
axes.plot(recurrence(abar, bbar, c, u), color=BLUE, label="recurrence")
axes.axvline(44, color=GREY, linestyle="--", label="the pulse")
axes.set(xlabel="step", ylabel="output")
axes.legend(fontsize=8)
picture

# %% [markdown]
# The output begins *before* the pulse. The Fourier transform believes that time is a circle: what runs out
# at the end comes in at the start. A language model with this bug reads the future. The cure is a long
# silence: pad both with zeros to length $2N$, and keep the first $N$.
#
# ### Exercise 3: a convolution that does not wrap around
#
# `np.fft.rfft(u, 2 * n)` pads by itself.


# %%
def convolve(u, K):
    """y (N,) with y_t = sum of K_l u_{t-l} over l = 0 .. t, from u (N,) and K (N,), by Fourier transforms."""
    # BEGIN SOLUTION
    n = len(u)
    return np.fft.irfft(np.fft.rfft(u, 2 * n) * np.fft.rfft(K, 2 * n), 2 * n)[:n]
    # END SOLUTION


# %% tags=["mistake"]
# Time is a circle.
def convolve(u, K):
    return np.fft.irfft(np.fft.rfft(u) * np.fft.rfft(K), len(u))


# %% tags=["mistake"]
# Keeps the second half.
def convolve(u, K):
    n = len(u)
    return np.fft.irfft(np.fft.rfft(u, 2 * n) * np.fft.rfft(K, 2 * n), 2 * n)[n:]


# %% tags=["mistake"]
# Keeps the padding.
def convolve(u, K):
    n = len(u)
    return np.fft.irfft(np.fft.rfft(u, 2 * n) * np.fft.rfft(K, 2 * n), 2 * n)


# %%
@exercise("convolve")
def check_convolve():
    found = convolve(np.array([1.0, 10.0]), np.array([3.0, 2.0]))
    assert found is not None, "convolve gives nothing back yet: return N real numbers"
    assert np.shape(found) == (2,), f"two tokens in, two out: your shape is {np.shape(found)}"
    assert np.abs(found - [3.0, 32.0]).max() <= 1e-9, (
        f"u = [1, 10] and K = [3, 2] give [3, 1*2 + 10*3] = [3, 32], not {found}"
    )
    # BEGIN HIDDEN TESTS
    for n in (1, 5, 37):
        signal = np.random.default_rng(n).standard_normal((2, n))
        apart = np.abs(convolve(*signal) - np.convolve(*signal)[:n]).max()
        assert apart <= 1e-9, f"for {n} random tokens it differs from the sum by {apart:.4f}"
    # END HIDDEN TESTS


# %% [markdown]
# The layer `s4d` of the library does this for every channel, with a step size and weights of its own, and
# ends with a small network for each token. It trains as a convolution and writes text as a recurrence:
# `step` takes one token and a state of constant size. Both must be the same map.

# %%
layer = mt.build("s4d", dim=4, states=16, seed=0, dtype="float64")
x = mt.tensor(np.random.default_rng(1).standard_normal((1, 300, 4)))
state, rows = layer.start(batch=1), []
for t in range(300):
    y, state = layer.step(x[:, t], state)
    rows.append(y.numpy())
s4d_error = np.abs(np.stack(rows, axis=1) - layer(x).numpy()).max()
print(f"300 tokens, one by one and by Fourier transform, differ by {s4d_error:.0e}")
print(f"the state: {state.shape[1]} channels of {state.shape[2]} complex numbers, at any length")

# %% [markdown]
# ## 3. What a state remembers
#
# A kernel is a picture of memory: how loud is a token after $l$ steps? The real part of $a_m$ says how long
# it lasts, the imaginary part how it swings. The step $\Delta$ stretches both: a small $\Delta$ is a slow
# clock. S4D starts with $a_m = -\frac{1}{2} + \pi i m$, and a $\Delta$ between 0.001 and 0.1, different in
# each channel. So some channels hold about twenty tokens, and some two thousand.

# %%
layer = mt.build("s4d", dim=64, states=32, seed=0)
K, dt = layer.kernel(1000).numpy(), np.exp(layer.log_dt.numpy())
l = np.arange(1000)
picture = Picture(7.8, 2.6)
left, middle, right = picture.subplots(1, 3)
for size, color in ((0.1, ORANGE), (0.01, GREEN), (0.001, BLUE)):
    left.plot(1 + l, np.exp(-0.5 * size * l), color=color, label=f"step {size}")
    channel = np.abs(np.log(dt / size)).argmin()
    right.plot(1 + l, K[channel] / np.abs(K[channel]).max(), color=color, label=f"step {dt[channel]:.3f}")
for m, color in ((1, ORANGE), (2, GREEN), (4, BLUE)):
    middle.plot(l[:120], np.exp(0.04 * (-0.5 + 1j * np.pi * m) * l[:120]).real, color=color, label=f"m = {m}")
left.set(xscale="log", ylabel="response")
right.set(xscale="log")
for axes, title in (
    (left, "one state: how long"),
    (middle, "how it swings"),
    (right, "three channels of S4D"),
):
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("steps ago")
for axes in (left, middle, right):
    axes.legend(fontsize=7)
picture

# %% [markdown]
# ### A window of the past
#
# S4D learns what to remember. The **Legendre memory unit** has it worked out: its matrices $A$ and $B$ are
# chosen so that the $n$ states are the coefficients of the last $\theta$ steps of $u$ in Legendre
# polynomials $P_i$. So the past can be drawn from the state alone:
#
# $$u(t - r + \frac{1}{2}) \approx \sum_{i<n} P_i(2r/\theta - 1)\; m_{t,i} \qquad 0 \le r \le \theta$$
#
# (The half step: the hold spreads each value over the step before it.) Nothing is learned here. Prediction:
# how many numbers does it take to hold 64 steps of the signal below?


# %%
def signal(time):
    return np.sin(2 * np.pi * time / 50) + 0.5 * np.sin(2 * np.pi * time / 17 + 1)


theta, now, l = 64, 180, np.arange(220)
u, r, lmu_errors = signal(l), np.arange(theta + 1), {}
picture = Picture(7.8, 2.7)
left, right = picture.subplots(1, 2, width_ratios=(1, 1.6))
right.plot(l, u, color=GREY, linewidth=3, alpha=0.5, label="the signal")
for n, color in ((4, ORANGE), (10, GREEN), (16, BLUE)):
    layer = mt.build("lmu_memory", dim=1, memory=n, theta=theta, dtype="float64")
    m = lmu_memory.convolved(mt.tensor(u[None, :, None]), layer.ad, layer.bd).numpy()[0, now]
    past = np.polynomial.legendre.legvander(2 * r / theta - 1, n - 1) @ m
    lmu_errors[n] = np.sqrt(np.mean(np.square(past - signal(now - r + 0.5))))
    right.plot(now - r + 0.5, past, color=color, label=f"from {n} numbers")
left.plot(lmu_memory.impulse(layer.ad, layer.bd, 130).numpy()[:, :5])
left.set(xlabel="steps ago", title="impulse responses 0 to 4")
right.axvline(now, color=GREY, linestyle="--")
right.set(xlabel="step", title="the last 64 steps, drawn from the state", xlim=(85, 200))
right.set_ylim(-2.6, 1.6)
right.legend(fontsize=7, loc="lower left", ncols=2)
size = np.sqrt(np.mean(np.square(u)))
print(
    f"typical size of the signal {size:.2f}; typical error:", {n: f"{e:.2f}" for n, e in lmu_errors.items()}
)
picture

# %% [markdown]
# Four polynomials cannot follow the fast wave, sixteen can: 64 values come back from 16 numbers, because
# the signal is smooth. The impulse responses live for about $\theta$ steps and then fade: the window
# slides.
#
# ## 4. What it cannot do
#
# In all of this, the weight of a token depends on its **distance** alone, $K_{t-s}$, and never on **what it
# is**. That is what *time-invariant* means, and what made the convolution possible. Here is a task for
# which it hurts: **selective copying**. Symbols stand between blanks, and after `COPY` they must be
# repeated in order.

# %%
task = SelectiveCopy(k=2, v=4, T=24, slots="copy")
even = SelectiveCopy(k=2, v=4, T=24, slots="copy", even=True)
for name, one in (("selective", task), ("fixed places", even)):
    tokens, answers, _ = one.sample(np.random.default_rng(0), 3)
    for row, answer in zip(tokens, answers):
        said = " ".join("abcd_?"[i] for i in row)
        print(f"{name:12}  {said}  ->  {' '.join('abcd'[i] for i in answer[-2:])}")

# %% [markdown]
# In the lower rows, the answers to the two `?` stand 24 and 13 places back: a kernel with a peak at each
# would do. In the upper rows no distance is right. What would help is a clock that *stops* at a blank. Then
# the two symbols would be neighbours, whatever lay between.
#
# Stopping the clock means $\Delta = 0$: $\bar a = 1$ keeps the state, $\bar b = 0$ writes nothing. And a
# large $\Delta$ wipes the old state and writes the token. So let $\Delta$ **depend on the token**. Below,
# the level should follow the marked values (black dots) and ignore the others. The gate
# $g = 1 - e^{-\Delta}$ is that of a bucket with $a = -1$: $x_t = (1 - g_t)\,x_{t-1} + g_t\,u_t$.

# %%
rng = np.random.default_rng(3)
u, marked = rng.uniform(-1, 1, 60), np.isin(np.arange(60), [8, 21, 40])


def levels(dt):
    keep = np.exp(-np.broadcast_to(dt, u.shape))
    return mt.ops.diagonal_scan(mt.tensor(keep[None]), mt.tensor(((1 - keep) * u)[None])).numpy()[0]


picture = Picture(7, 2.6)
axes = picture.subplots()
axes.plot(u, ".", color=GREY, label="ignore these")
axes.plot(np.flatnonzero(marked), u[marked], "o", color="black", label="remember these")
axes.plot(levels(0.5), color=ORANGE, label="constant step 0.5")
axes.plot(levels(0.05), color=GREEN, label="constant step 0.05")
axes.step(np.arange(60), levels(np.where(marked, 9.0, 0.0)), color=BLUE, where="post", label="selected step")
axes.set(xlabel="token", ylabel="level", xlim=(-1, 84))
axes.legend(fontsize=7, loc="right")
picture

# %% [markdown]
# ## 5. The selective scan
#
# Mamba makes the step, the input map and the output map from the token $u_t$, by learned matrices:
#
# $$\Delta_t = \mathrm{softplus}(u_t W_\Delta + \beta), \qquad
# x_t = e^{\Delta_t A} * x_{t-1} + \Delta_t\,u_t\,B_t, \qquad y_t = x_t \cdot C_t$$
#
# $A$ stays fixed, $B_t = u_t W_B$ and $C_t = u_t W_C$ say what is written and what is read. (A skip $D\,u_t$
# is added to $y_t$.) For the state this is the hold of section 1; for the input Mamba's code takes the
# simpler $\Delta_t$. Two checks: with a constant $\Delta$, $B$ and $C$ it must be a convolution again. And
# with the exact hold, one state and $a=-1$, softplus is what turns the step into the gate of an LSTM or GRU:
# $g = 1 - e^{-\mathrm{softplus}(s)} = \sigma(s)$.

# %%
rng = np.random.default_rng(0)
scan = mt.build("selective_scan", dim=3, states=4, seed=0, dtype="float64")
u = rng.standard_normal((1, 50, 3))
delta, b, c = (np.broadcast_to(rng.standard_normal(w), (1, 50, w)) for w in (3, 4, 4))
y, _ = scan(*(mt.tensor(v) for v in (u, delta, b, c)))
dt, a = mt.ops.softplus(delta[0, 0] + scan.bias).numpy(), -np.exp(scan.a_log.numpy())
K = np.stack([dt * (np.exp(l * dt[:, None] * a) @ (b[0, 0] * c[0, 0])) for l in range(50)], axis=1)
sums = np.stack([np.convolve(u[0, :, e], K[e])[:50] for e in range(3)], axis=-1) + scan.d.numpy() * u[0]
constant_error = np.abs(y.numpy()[0] - sums).max()
s = np.linspace(-8, 8, 100)
gate_error = np.abs(1 - np.exp(-mt.ops.softplus(s)) - mt.ops.sigmoid(s)).max()
print(f"constant steps: differs from a convolution by {constant_error:.0e}")
print(f"the step as a gate: differs from the sigmoid by {gate_error:.0e}")

# %% [markdown]
# Now $\Delta_t$ differs from token to token, so there is no kernel and no Fourier transform. Must we go
# token by token? Each token is a small program, "multiply by $a$, then add $b$". Two programs in a row are
# one program of the same kind. And how you put the brackets does not matter: the operation is
# **associative**. So the left half and the right half of a text can be condensed at the same time.
#
# ### Exercise 4: two steps in one
#
# First $h \leftarrow a_1 h + b_1$, then $h \leftarrow a_2 h + b_2$. Which single $a$ and $b$ do both?


# %%
def combine(first, second):
    """(a, b) of the one step that does `first` = (a1, b1) and then `second` = (a2, b2)."""
    # BEGIN SOLUTION
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, a2 * b1 + b2
    # END SOLUTION


# %% tags=["mistake"]
# The second first.
def combine(first, second):
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, a1 * b2 + b1


# %% tags=["mistake"]
# What the first has written does not decay.
def combine(first, second):
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, b1 + b2


# %% tags=["mistake"]
# Keeps only the decay of the second.
def combine(first, second):
    (_, b1), (a2, b2) = first, second
    return a2, a2 * b1 + b2


# %%
def doubling(join, items):
    """All prefixes, by rounds: each joins every place with the one 1, 2, 4, ... places before it."""
    shift, rounds = 1, [items]
    while shift < len(items[0]):
        joined = join([v[:-shift] for v in items], [v[shift:] for v in items])
        items = [np.concatenate([v[:shift], new]) for v, new in zip(items, joined)]
        rounds.append(items)
        shift *= 2
    return items, rounds


@exercise("combine")
def check_combine():
    found = combine((0.5, 1.0), (0.25, 2.0))
    assert found is not None, "combine gives nothing back yet: return a pair, a and b"
    assert np.shape(found) == (2,), f"it must be a pair of two numbers, and yours has shape {np.shape(found)}"
    start, end = 8.0, 0.25 * (0.5 * 8.0 + 1.0) + 2.0
    assert abs(found[0] * start + found[1] - end) <= 1e-9, (
        f"h = 8 becomes 0.5 * 8 + 1 = 5, then 0.25 * 5 + 2 = {end}; with your a = {found[0]} and "
        f"b = {found[1]} it becomes {found[0] * start + found[1]}"
    )
    assert abs(found[1] - 2.25) <= 1e-9, f"h = 0 becomes 1, then 2.25; with your b it becomes {found[1]}"
    # BEGIN HIDDEN TESTS
    a, b = np.random.default_rng(2).uniform(0.2, 1.0, (2, 13))
    h, expected = 0.0, []
    for a_t, b_t in zip(a, b):
        h = a_t * h + b_t
        expected.append(h)
    apart = np.abs(doubling(combine, [a, b])[0][1] - expected).max()
    assert apart <= 1e-9, f"13 tokens in 4 rounds differ from the recurrence by {apart:.4f}"
    # END HIDDEN TESTS


# %% [markdown]
# The scan `doubling` above needs as many rounds as you can double 1 before reaching $N$. Below, a row is a
# token, and blue are the tokens that its program covers. On a machine with enough processors a round takes
# the time of one step. (`mt.ops.diagonal_scan` in the library arranges the rounds differently, to do less
# work in all.)

# %%
_, rounds = doubling(lambda first, second: [first[0] | second[0]], [np.eye(16, dtype=bool)])
picture = Picture(7.5, 2)
for i, axes in enumerate(picture.subplots(1, len(rounds))):
    axes.imshow(rounds[i][0], cmap="Blues", vmin=0, vmax=1.3)
    axes.set(xticks=[], yticks=[], title=f"round {i}" if i else "start")
    axes.set_xlabel("covers")
    axes.set_ylabel("token" if i == 0 else "")
print({n: f"{len(doubling(lambda f, s: [f[0]], [np.zeros(n)])[1]) - 1} rounds" for n in (16, 1024, 65536)})
picture

# %% [markdown]
# ## 6. Selective copying, with and without selection
#
# The experiment of the Mamba paper, small. Both networks are an embedding, one Mamba block and a linear map
# to the answers. The block: two projections $u$ and $z$, a convolution over 4 tokens, the state space, a
# gate by $z$. In one network the state space is the selective scan. In the other it is S4D, with four times
# as many states. All else is equal. What accuracy do you expect of each? Guessing gives 0.25.


# %%
class TimeInvariant(nn.Module):
    """The Mamba block with S4D in the place of the selective scan."""

    def __init__(self, dim, seed):
        block = mt.build("mamba_block", dim=dim, seed=seed)
        self.norm, self.win, self.conv, self.wo = (
            block.norm,
            block.mixer.win,
            block.mixer.conv,
            block.mixer.wo,
        )
        self.ssm = mt.build("s4d", dim=2 * dim, states=16, seed=seed)
        self.ssm.wo = None  # its own small network is not needed here

    def forward(self, x):
        u, z = mt.ops.split(self.win(self.norm(x)), 2, axis=-1)
        u = mt.ops.silu(self.conv(u, self.conv.start(x.shape[0]))[0])
        y = s4d.convolved(u, self.ssm.kernel(x.shape[1])) + self.ssm.d * u
        return x + self.wo(y * mt.ops.silu(z))


class Network(nn.Module):
    def __init__(self, block, seed, dim=16):
        self.embedding = nn.Embedding(task.V_in, dim, seed, std=1.0)
        self.block, self.norm = block, nn.RMSNorm(dim)
        self.head = nn.Linear(dim, task.V_out, True, np.random.default_rng(seed))

    def forward(self, tokens):
        return self.head(self.norm(self.block(self.embedding(tokens))))


def accuracy(network, task, seed=99, size=128):
    tokens, answers, _ = task.sample(np.random.default_rng(seed), size)
    with mt.no_grad():
        said = network(tokens).numpy()[:, -task.k :].argmax(axis=-1)
    return (said == answers[:, -task.k :]).mean()


def train(network, task, seed, steps=300, lr=0.02):
    """Accuracy on unseen rows, every 50 steps."""
    rng, curve = np.random.default_rng(seed), []
    optimizer = mt.train.AdamW(network.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        optimizer.lr = lr * min((step + 1) / 20, 1, 2.05 - 2 * step / steps)
        tokens, answers, _ = task.sample(rng, 16)
        loss = mt.ops.cross_entropy(network(tokens)[:, -task.k :], answers[:, -task.k :])
        optimizer.zero_grad()
        loss.backward()
        mt.train.clip_grad_norm(network.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            curve.append(accuracy(network, task))
    return curve


# %%
selective = [Network(mt.build("mamba_block", dim=16, states=4, seed=s + 1), s) for s in (0, 1)]
invariant, fixed = (Network(TimeInvariant(16, seed=1), 0) for _ in range(2))
curves = {
    "selective scan": (BLUE, [train(network, task, s) for s, network in enumerate(selective)]),
    "S4D in its place": (ORANGE, [train(invariant, task, 0)]),
    "S4D, fixed places": (GREEN, [train(fixed, even, 0, steps=100)]),
}
picture = Picture(6.5, 2.8)
axes = picture.subplots()
for name, (color, runs) in curves.items():
    for i, run in enumerate(runs):
        places = 50 * np.arange(1, len(run) + 1)
        axes.plot(places, run, "o-", color=color, markersize=3, label=None if i else name)
axes.axhline(task.chance, color=GREY, linestyle="--", label="guessing")
axes.set(xlabel="training step", ylabel="accuracy", ylim=(0.15, 1.03))
axes.legend(fontsize=8)
for name, network in (("selective scan", selective[0]), ("S4D in its place", invariant)):
    print(f"{name}: {network.count_parameters():,} parameters")
print({name: [f"{run[-1]:.2f}" for run in runs] for name, (_, runs) in curves.items()})
picture

# %% [markdown]
# The selective scan solves the task (two seeds). We chose the size for that: with three symbols, a training
# of this length was too short for most seeds. With S4D in its place, the same block stays far below (one
# seed), although its convolution and its gate do look at the tokens. What it gets beyond guessing is
# presumably read from how loud an old symbol still is. And when the places are fixed, S4D solves the task:
# its memory is good enough, only its clock is wrong.
#
# What has the network learned? Left: how much the slowest state of each channel keeps at each token,
# $e^{\Delta_t A}$. Right: the same networks on rows that are longer or shorter than those of the training.

# %%
tokens = task.sample(np.random.default_rng(0), 3)[0][2:]
seen = []
hook = selective[0].block.mixer.scan.register_forward_pre_hook(lambda scan, inputs: seen.append(inputs[1]))
selective[0](tokens)
hook.remove()
scan = selective[0].block.mixer.scan
slowest = np.exp(scan.a_log.numpy()).min(axis=1)
keeps = np.exp(-slowest * mt.ops.softplus(seen[0] + scan.bias).numpy()[0])
lengths = [6, 12, 24, 48, 96]
longer = [SelectiveCopy(k=2, v=4, T=n, slots="copy") for n in lengths]
tests = {
    name: [accuracy(net, one, size=64) for one in longer] for name, net in zip("ABC", [*selective, invariant])
}
picture = Picture(8, 3.2)
left, right = picture.subplots(1, 2, width_ratios=(1.7, 1))
shown = left.imshow(keeps.T[np.argsort(keeps.mean(axis=0))], cmap="Blues", vmin=0, vmax=1, aspect="auto")
left.set_xticks(range(task.N), ["abcd_?"[i] for i in tokens[0]], fontsize=7)
left.set(xlabel="token", ylabel="channel, sorted", title="kept of the state")
picture.colorbar(shown, ax=left)
for (name, color), label in zip(
    zip("ABC", (BLUE, BLUE, ORANGE)), ("selective scan", None, "S4D in its place")
):
    right.plot(lengths, tests[name], "o-", color=color, markersize=3, label=label)
right.axvline(task.T, color=GREY, linestyle=":", label="trained here")
right.set(xscale="log", xlabel="tokens before the ?", ylabel="accuracy", ylim=(0, 1.05))
right.set_xticks(lengths, lengths)
right.minorticks_off()
right.legend(fontsize=7, loc="lower left")
# Blanks with nothing but blanks in the three tokens before them: the convolution sees four.
blank = tokens[0] == task.v
far = blank.copy()
for shift in (1, 2, 3):
    far[shift:] &= blank[:-shift]
change = keeps[far].mean(axis=0) - keeps[~far].mean(axis=0)
print(f"{(change > 0.02).sum()} of 32 channels keep more among blanks, {(change < -0.02).sum()} keep less")
picture

# %% [markdown]
# The clock of a channel depends on the token. One group of channels holds still among blanks and lets go of
# old things next to a symbol or a `?`. (Next to it, because the convolution before the scan sees four
# tokens.) Another group does the opposite. And many keep whatever they get. Nobody told the network which
# tokens matter.
#
# Shorter rows are easy for the selective scan. Longer ones are harder for all three networks, and hardest
# with S4D. One likely reason: a step that is small, but not zero, adds up over many blanks.
#
# ## 7. The same layer is attention
#
# Let all states of a head share one decay $a_t = \Delta_t A \le 0$, as **Mamba-2** does. Unroll the
# recurrence once more, and collect what token $j$ contributes to token $i$:
#
# $$y_i = \sum_{j \le i} L_{ij}\,(C_i \cdot B_j)\,\Delta_j u_j, \qquad L_{ij} = \exp(a_{j+1} + \cdots + a_i)$$
#
# $C$ is a query, $B$ a key, $\Delta u$ a value, and instead of a softmax there is a matrix of decays $L$.
# (Below, and in the exercise, $\Delta_j$ is taken to be part of $u_j$.) This is the **state-space duality**:
# a recurrence with a fixed state, or a matrix over all pairs. For a short text the matrix is quick, for a
# long one the recurrence, and Mamba-2 uses one within chunks and the other between them. Below, three tokens
# in the middle say "forget" ($a=-2$); the others keep ($a=-0.05$). On the right, a layer of the library
# before training: what stands out is its convolution over four tokens.

# %%
rng = np.random.default_rng(0)
u, b, c = (mt.tensor(rng.standard_normal((1, 1, 40, n))) for n in (6, 8, 8))
a = np.full((1, 1, 40, 1), -0.05)
a[:, :, 18:21] = -2.0
one, none = mt.tensor(np.ones((1, 1, 40, 1))), mt.tensor(np.zeros((1, 1, 1)))
matrix = mamba2_ssd.quadratic(u, one, mt.tensor(a), b, c, none).numpy()
duality_error = np.abs(matrix - mamba2_ssd.recurrent(u, one, mt.tensor(a), b, c, none)[0].numpy()).max()
total = np.cumsum(a[0, 0, :, 0])
L = np.where(np.tri(40, dtype=bool), np.exp(np.minimum(total[:, None] - total, 0)), 0)
layer = mt.build("mamba2_ssd", dim=16, head_dim=8, states=8, seed=0, dtype="float64")
x = mt.tensor(rng.standard_normal((1, 40, 16)))
pictured = [(L, "decays L", 1), (L * np.abs((c @ b.mT).numpy()[0, 0]), "L times |C B|", None)]
pictured.append((mt.viz.mixing_matrix(layer, x), "a fresh Mamba-2 layer", None))
picture = Picture(7.8, 2.7)
for axes, (values, title, top) in zip(picture.subplots(1, 3), pictured):
    axes.imshow(values, cmap="Blues", vmin=0, vmax=np.quantile(values, 0.98) if top is None else top)
    axes.set(xlabel="token j", ylabel="token i")
    axes.set_title(title, fontsize=10)
print(f"matrix and recurrence differ by {duality_error:.0e}")
picture

# %% [markdown]
# ### Exercise 5: a selective state space as a matrix
#
# Write the end of `forward`: from `u`, `b`, `c` and the logarithms of the decays `a`, all (B, N, ...), the
# answers of the formula above. With the running sum $G$ of `a`, the exponent is $G_i - G_j$:
# `mt.ops.cumsum(a, axis=1)` and `.mT` help. Hide the future with $-\infty$ **before** `mt.ops.exp`, by
# `mt.ops.where(visible, ..., -np.inf)`. The last check draws sizes and numbers, and looks for a leak from
# later tokens and for wrong derivatives.


# %%
class Dual(nn.Module):
    """x (B, N, D) -> (B, N, D): a selective state space with one decay for all channels."""

    def __init__(self, dim, *, states=4, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        sizes = {"wu": dim, "wb": states, "wc": states, "wa": 1}
        for name, size in sizes.items():
            setattr(self, name, nn.Linear(dim, size, True, rng, dtype=dtype))

    def forward(self, x):
        u, b, c, a = self.wu(x), self.wb(x), self.wc(x), -mt.ops.softplus(self.wa(x))
        # BEGIN SOLUTION
        total = mt.ops.cumsum(a, axis=1)
        visible = np.tri(x.shape[1], dtype=bool)
        decay = mt.ops.exp(mt.ops.where(visible, total - total.mT, -np.inf))
        return (c @ b.mT * decay) @ u
        # END SOLUTION


# %% tags=["mistake"]
# Lets what token j wrote decay by the step of token j itself.
class Dual(nn.Module):
    def __init__(self, dim, *, states=4, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        for name, size in {"wu": dim, "wb": states, "wc": states, "wa": 1}.items():
            setattr(self, name, nn.Linear(dim, size, True, rng, dtype=dtype))

    def forward(self, x):
        u, b, c, a = self.wu(x), self.wb(x), self.wc(x), -mt.ops.softplus(self.wa(x))
        total = mt.ops.cumsum(a, axis=1)
        visible = np.tri(x.shape[1], dtype=bool)
        decay = mt.ops.exp(mt.ops.where(visible, total - (total - a).mT, -np.inf))
        return (c @ b.mT * decay) @ u


# %% tags=["mistake"]
# Reads the future: no mask.
class Dual(nn.Module):
    def __init__(self, dim, *, states=4, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        for name, size in {"wu": dim, "wb": states, "wc": states, "wa": 1}.items():
            setattr(self, name, nn.Linear(dim, size, True, rng, dtype=dtype))

    def forward(self, x):
        u, b, c, a = self.wu(x), self.wb(x), self.wc(x), -mt.ops.softplus(self.wa(x))
        total = mt.ops.cumsum(a, axis=1)
        return (c @ b.mT * mt.ops.exp(total - total.mT)) @ u


# %% tags=["mistake"]
# Takes the keys for the queries.
class Dual(nn.Module):
    def __init__(self, dim, *, states=4, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        for name, size in {"wu": dim, "wb": states, "wc": states, "wa": 1}.items():
            setattr(self, name, nn.Linear(dim, size, True, rng, dtype=dtype))

    def forward(self, x):
        u, b, c, a = self.wu(x), self.wb(x), self.wc(x), -mt.ops.softplus(self.wa(x))
        total = mt.ops.cumsum(a, axis=1)
        visible = np.tri(x.shape[1], dtype=bool)
        decay = mt.ops.exp(mt.ops.where(visible, total - total.mT, -np.inf))
        return (b @ c.mT * decay) @ u


# %%
@exercise("Dual")
def check_dual():
    layer = Dual(3, dtype="float64")
    x = mt.tensor(np.random.default_rng(0).standard_normal((2, 3, 3)))
    found = layer(x)
    assert found is not None, "forward gives nothing back yet: return the answers, a tensor (B, N, D)"
    assert found.shape == (2, 3, 3), f"for x of shape (2, 3, 3) the answers have shape {found.shape}"
    u, b, c, a = (v.numpy() for v in (layer.wu(x), layer.wb(x), layer.wc(x), -mt.ops.softplus(layer.wa(x))))
    state = np.zeros((2, 4, 3))
    for t in range(3):
        state = np.exp(a[:, t, :, None]) * state + b[:, t, :, None] * u[:, t, None, :]
        y = (c[:, t, None, :] @ state)[0, 0]
        assert np.abs(found.numpy()[0, t] - y).max() <= 1e-9, (
            f"the recurrence gives {y} at token {t}, your matrix {found.numpy()[0, t]}"
        )
    check_variant(Dual, kind="token_mixer", claims=("causal", "batch_independent"), examples=NOTEBOOK)
    # BEGIN HIDDEN TESTS
    long = Dual(3, seed=1)(mt.tensor(30 * np.random.default_rng(1).standard_normal((1, 200, 3), "float32")))
    assert np.isfinite(long.numpy()).all(), "for 200 tokens with strong decays, numbers overflow"
    # END HIDDEN TESTS


# %%
final = {name: [run[-1] for run in runs] for name, (_, runs) in curves.items()}
rows = [
    (
        "*On the Parameterization and Initialization of Diagonal State Space Models* (arXiv:2206.11893): "
        "a diagonal state space is a recurrence and a convolution",
        f"300 tokens, both ways: equal within {s4d_error:.0e}",
    ),
    (
        "*Parallelizing Legendre Memory Unit Training* (arXiv:2102.11417): the state holds a sliding window",
        f"64 steps of two waves of size {size:.2f}, from 4, 10 and 16 numbers: typical error "
        + ", ".join(f"{e:.2f}" for e in lmu_errors.values()),
    ),
    (
        "*Mamba* (arXiv:2312.00752), theorem 1: with one state and $a=-1$, the step is the gate of a "
        "recurrent network",
        f"equal within {gate_error:.0e}",
    ),
    (
        "the same, 4.1.1, table 1: selective copying of 16 tokens in 4096, accuracy 99.8 % with the "
        "selective scan in the Mamba block, 56.4 % with S4 in its place",
        f"2 tokens in 24: {' and '.join(f'{v:.1%}' for v in final['selective scan'])} (two seeds), "
        f"{final['S4D in its place'][0]:.1%} with S4D in its place (one seed); guessing {task.chance:.0%}",
    ),
    (
        "the same, 3.1 and figure 2: with constant spacing, time-invariant models copy without trouble",
        f"S4D, fixed places: {final['S4D, fixed places'][0]:.1%}",
    ),
    (
        "the same, 4.1.2: on induction heads, Mamba goes on working at 4000 times the length",
        "on *this* task, four times the length: "
        + ", ".join(f"{tests[name][-1]:.0%}" for name in "AB")
        + "; these small networks do not extrapolate like that",
    ),
    (
        "*Transformers are SSMs* (arXiv:2405.21060): with one decay for each head, the recurrence "
        "is masked linear attention",
        f"equal within {duality_error:.0e}",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - Train `Network(TimeInvariant(...))` with two blocks instead of one. How close does it come, and what
#   happens to it at twice the length?
# - Three symbols instead of two (`k=3`): how many more steps does the selective scan need? Try several
#   seeds.
# - The layout `slots="blank"` shows only one `COPY`. What must the network know in addition?
# - Set the step of every channel of a trained selective network to its mean over tokens. What is left?
# - The step could be exactly zero at blanks. Replace softplus by ReLU: does the accuracy at 96 tokens
#   change?
#
# ## Where to go next
#
# Read `minitf/mixers/selective_scan.py`, then `mamba2_ssd.py` beside it: the equations at the top are those
# of this lesson. `minitf show mamba_block` prints the whole block, and
# `minitf train --task mqar --attention mamba2_ssd` asks it to remember pairs.
# `mt.catalogue.find("*", family="state space")` lists the other state spaces.
