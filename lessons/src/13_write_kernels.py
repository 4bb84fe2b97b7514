# %% [markdown]
# # Write one attention four times, then break your own
#
# **What you will do.** Write softmax attention as plain NumPy, in blocks, as compiled loops for the CPU, and
# as text for a GPU. Measure each. Then write a variant that nobody has published, break it on purpose, and
# see which check finds out.
#
# **What you will learn.** Why attention is short of memory before it is short of arithmetic; the online
# softmax; tiles, and which of them a causal kernel may skip; how a compiler turns loops into vector
# instructions; how a GPU cuts the same loops into blocks and threads; how to test a kernel so that a dropped
# tail cannot hide; how to test a variant without any reference.
#
# **What you need.** Lesson `02_build_attention`. No GPU: the text for it is read, and its index arithmetic
# is run on the CPU.
#
# **Variants.** `softmax_attention`, `alibi`

# %%
import math
import os
import time
import tracemalloc

import numba
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf import ops
from minitf.testing import NOTEBOOK, check_variant, exercise
from minitf.viz import Picture, mixing_matrix
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
np.set_printoptions(precision=3, suppress=True)
print(f"NumPy {np.__version__}, Numba {numba.__version__}, {os.cpu_count()} cores, one is used")

# %% [markdown]
# ## 1. Plain NumPy: the definition
#
# Causal attention for one head: token $i$ averages the values of the tokens $j \le i$.
#
# $$o_i = \frac{\sum_{j \le i} e^{s_{ij}}\, v_j}{\sum_{j \le i} e^{s_{ij}}} \qquad\qquad
# s_{ij} = \frac{q_i \cdot k_j}{\sqrt d}$$
#
# Shapes: $q$, $k$, $v$ and $o$ are $(N, d)$, the scores $s$ are $(N, N)$. Three lines do it. The largest
# score of each row is subtracted first, so that no exponential overflows.


# %%
def plain(q, k, v):
    scores = np.where(np.tri(len(q), dtype=bool), q @ k.T / math.sqrt(q.shape[1]), -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ v


def inputs(n, d=32, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((3, n, d)).astype(dtype)


def library(q, k, v):
    return ops.softmax_attention(q[None, None], k[None, None], v[None, None], causal=True)[0, 0]


q, k, v = inputs(100, dtype=np.float64)
print("plain differs from the library by", f"{np.abs(plain(q, k, v) - library(q, k, v)).max():.0e}")

# %% [markdown]
# What does it need? The output has $N d$ numbers, the scores $N^2$, and NumPy makes several arrays of that
# size on the way. Guess before you run: at $N = 2048$ and $d = 32$, how many times the memory of the output?


# %%
def peak(f, *arrays):
    """The most memory that f held at one time, in MiB, its arguments not counted."""
    tracemalloc.start()
    f(*arrays)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


lengths = [256, 512, 1024, 2048]
plain_peaks = [peak(plain, *inputs(n)) for n in lengths]
for n, mib in zip(lengths, plain_peaks):
    print(f"N = {n:5}: {mib:6.1f} MiB, {mib * 2**20 / (n * 32 * 4):5.0f} times the output")

# %% [markdown]
# The memory grows with $N^2$: twice the tokens, four times the bytes. On a GPU this is worse than it sounds.
# Arithmetic there is so fast that the time goes into moving the scores to memory and back. So the question
# is: can the scores stay small?
#
# ## 2. In blocks: the online softmax
#
# Take the keys in tiles of $T$. For each query keep three things about the keys seen so far: the largest
# score $m$, the sum $l = \sum_j e^{s_j - m}$, and the sum $a = \sum_j e^{s_j - m} v_j$. When a tile brings a
# larger score, what was summed before is too large by a known factor:
#
# $$m' = \max(m, \max_j s_j) \qquad l' = e^{m - m'} l + \sum_j e^{s_j - m'} \qquad
# a' = e^{m - m'} a + \sum_j e^{s_j - m'} v_j$$
#
# At the end $o = a / l$. Nothing is approximated.
#
# ### Exercise 1: take in one tile
#
# Write the three formulas. `scores` has hidden keys as $-\infty$; at least one key has been seen or is in
# the tile. At the start $m = -\infty$, $l = 0$, $a = 0$: then $e^{m - m'} = 0$, and all is well.


# %%
def take_in(m, l, a, scores, values):
    """(m, l, a) after one more tile.

    m, l: (R,) and a: (R, d) for R queries; scores (R, T) of a tile of keys, values (T, d) of those keys.
    """
    # BEGIN SOLUTION
    new = np.maximum(m, scores.max(axis=1))
    p = np.exp(scores - new[:, None])
    shrink = np.exp(m - new)
    return new, shrink * l + p.sum(axis=1), shrink[:, None] * a + p @ values
    # END SOLUTION


# %% tags=["mistake"]
# Does not shrink what was summed before.
def take_in(m, l, a, scores, values):
    new = np.maximum(m, scores.max(axis=1))
    p = np.exp(scores - new[:, None])
    return new, l + p.sum(axis=1), a + p @ values


# %% tags=["mistake"]
# Keeps the largest score of the last tile only.
def take_in(m, l, a, scores, values):
    new = scores.max(axis=1)
    p = np.exp(scores - new[:, None])
    shrink = np.exp(m - new)
    return new, shrink * l + p.sum(axis=1), shrink[:, None] * a + p @ values


# %%
@exercise("take_in")
def check_take_in():
    one = np.ones((1, 1))
    first = take_in(np.full(1, -np.inf), np.zeros(1), np.zeros((1, 1)), 0 * one, 5 * one)
    assert first is not None, "take_in gives nothing back yet: return m, l and a"
    words = "one query, one key with score 0 and value 5"
    found = [float(np.squeeze(x)) for x in first]
    assert found == [0, 1, 5], f"{words}: m, l, a are 0, 1, 5, not {found}"
    m, l, a = take_in(*first, 2 * one, 7 * one)
    right = [2, math.exp(-2) + 1, math.exp(-2) * 5 + 7]
    for name, mine, expected in zip("mla", (m, l, a), right):
        error = np.abs(np.squeeze(mine) - expected)
        assert error <= 1e-12, (
            f"{words}, then score 2 and value 7: {name} is {expected:.4f}, not {np.squeeze(mine):.4f}"
        )
    m, l, a = take_in(m, l, a, 0 * one, 3 * one)
    assert m[0] == 2, f"{words}, then scores 2 and 0: the largest so far is m = 2, not {m[0]:.4f}"
    # BEGIN HIDDEN TESTS
    rng = np.random.default_rng(3)
    s, values = 20 * rng.standard_normal((4, 12)), rng.standard_normal((12, 3))
    state = np.full(4, -np.inf), np.zeros(4), np.zeros((4, 3))
    for tile in (slice(0, 5), slice(5, 6), slice(6, 12)):
        state = take_in(*state, s[:, tile], values[tile])
    error = np.abs(state[2] / state[1][:, None] - ops.softmax(s) @ values).max()
    assert error <= 1e-12, f"three tiles of 5, 1 and 6 keys: a / l differs from the softmax by {error:.2g}"
    # END HIDDEN TESTS


# %% [markdown]
# Now the loop over tiles. Queries come in tiles too, so that the products are of matrices. Tiles above the
# diagonal are never visited: nobody in them may be seen. Tiles on the diagonal need a mask, those below do
# not.


# %%
def blocked(q, k, v, tile=64):
    o = np.empty_like(v)
    q = q / np.float32(math.sqrt(q.shape[1])) if q.dtype == np.float32 else q / math.sqrt(q.shape[1])
    for i in range(0, len(q), tile):
        rows = q[i : i + tile]
        m = np.full(len(rows), -np.inf, q.dtype)
        l, a = np.zeros(len(rows), q.dtype), np.zeros_like(rows)
        for j in range(0, i + len(rows), tile):
            s = rows @ k[j : j + tile].T
            if j + tile > i:
                s = np.where(np.tri(*s.shape, k=i - j, dtype=bool), s, -np.inf)
            new = np.maximum(m, s.max(axis=1))
            p, shrink = np.exp(s - new[:, None]), np.exp(m - new)
            m, l, a = new, shrink * l + p.sum(axis=1), shrink[:, None] * a + p @ v[j : j + tile]
        o[i : i + tile] = a / l[:, None]
    return o


for n, tile in ((1, 64), (63, 64), (64, 64), (65, 64), (100, 7)):
    q, k, v = inputs(n, dtype=np.float64)
    print(f"N = {n:3}, tile {tile:2}: differs by {np.abs(blocked(q, k, v, tile) - plain(q, k, v)).max():.0e}")

# %% [markdown]
# Those sizes were no accident. Mistakes of kernels live at the edges of tiles: one token, one below the
# tile, the tile, one above. Now the memory again, and the tiles as a picture.

# %%
blocked_peaks = [peak(blocked, *inputs(n)) for n in lengths]
picture = Picture(8, 3.2)
left, right = picture.subplots(1, 2, width_ratios=(1.4, 1))
left.loglog(lengths, plain_peaks, "o-", color=ORANGE, label="plain")
left.loglog(lengths, blocked_peaks, "o-", color=BLUE, label="in blocks")
left.loglog(lengths, [n * 32 * 4 / 2**20 for n in lengths], "--", color=GREY, label="the output")
left.set(xlabel="tokens N", ylabel="most memory held (MiB)", xticks=lengths, xticklabels=lengths)
left.minorticks_off()
left.legend(fontsize=8)
i, j = np.indices((8, 8))
right.imshow(np.where(j > i, 0, np.where(i == j, 1, 2)), cmap="Blues", vmin=0, vmax=3)
for row in range(8):
    for column in range(8):
        word = "" if column > row else "mask" if column == row else "all"
        right.text(column, row, word, ha="center", va="center", fontsize=7)
right.set(title="8 x 8 tiles, white is skipped", xlabel="tile of keys", ylabel="tile of queries")
picture

# %% [markdown]
# ### Exercise 2: how much work is left?
#
# With $N$ tokens and tiles of $T$, how many tiles are visited? Remember that $N$ need not be a multiple of
# $T$. What does this make of the speed-up for long sequences?


# %%
def visited(n, tile):
    """The number of tiles on and below the diagonal, for n queries and n keys."""
    # BEGIN SOLUTION
    rows = -(-n // tile)
    return rows * (rows + 1) // 2
    # END SOLUTION


# %% tags=["mistake"]
# Drops the tail: counts whole tiles only.
def visited(n, tile):
    rows = n // tile
    return rows * (rows + 1) // 2


# %% tags=["mistake"]
# Forgets the diagonal.
def visited(n, tile):
    rows = -(-n // tile)
    return rows * (rows - 1) // 2


# %%
@exercise("visited")
def check_visited():
    for n, tile in ((1, 4), (4, 4), (5, 4), (64, 8), (1000, 64)):
        mine = visited(n, tile)
        assert mine is not None, "visited gives nothing back yet: return a number of tiles"
        starts = range(0, n, tile)
        right = sum(j <= i for i in starts for j in starts)
        assert mine == right, f"{n} tokens in tiles of {tile}: {right} tiles are visited, you count {mine}"
    share = visited(64_000, 64) / 1000**2
    print(f"of a million tiles {share:.1%} are visited: nearly half of the work is gone")


# %% [markdown]
# ## 3. Compiled loops: Numba
#
# NumPy still writes each tile of scores to memory several times. A compiled loop can keep a tile in the
# cache and go on. Numba compiles the loops below when they are first called.
#
# The order of the loops matters. In `for j: for c: s[j] += q[c] * k[j, c]` each score is one long sum. The
# compiler must not change the order of a sum, since rounding would change, so it adds one number at a time.
# In `for c: for j: s[j] += q[c] * kt[c, j]` neighbouring scores are independent: eight or more are computed
# by one instruction. For that the keys are stored transposed.


# %%
def scores_by_key(q, k, s):
    for i in range(q.shape[0]):
        for j in range(k.shape[0]):
            s[j] = 0
            for c in range(q.shape[1]):
                s[j] += q[i, c] * k[j, c]


def scores_by_width(q, kt, s):
    for i in range(q.shape[0]):
        for j in range(kt.shape[1]):
            s[j] = 0
        for c in range(q.shape[1]):
            for j in range(kt.shape[1]):
                s[j] += q[i, c] * kt[c, j]


q, k, v = inputs(512)
s = np.empty(512, np.float32)
by_key, by_width = numba.njit(scores_by_key), numba.njit(scores_by_width)
kt = np.ascontiguousarray(k.T)
spans = {}
for name, call in (
    ("a sum at a time", lambda: by_key(q, k, s)),
    ("many sums at a time", lambda: by_width(q, kt, s)),
):
    call()
    spans[name] = []
    for _ in range(7):
        begin = time.perf_counter()
        call()
        spans[name].append(time.perf_counter() - begin)
ratio = np.median(spans["a sum at a time"]) / np.median(spans["many sums at a time"])
print(f"the second order is {ratio:.1f} times as fast")

# %% [markdown]
# ### Exercise 3: one query, as loops
#
# Write the kernel of one query: keys $0 \ldots i$ in tiles, the online softmax in plain loops, no NumPy
# arrays but those given. `s` has room for the scores of one tile. The answer goes into `out`, which is
# filled with NaN before: what you forget to write will show.


# %%
def one_query(i, q, kt, v, s, out):
    """Write the answer of query i, q[i] (d,), to the keys 0..i into out (d,).

    kt: keys transposed (d, N), v: values (N, d), s: room for the scores of a tile (T,).
    """
    # BEGIN SOLUTION
    d, tile = q.shape[1], s.shape[0]
    m, l = -np.inf, 0.0
    for c in range(d):
        out[c] = 0
    for j in range(0, i + 1, tile):
        size = min(tile, i + 1 - j)
        s[:size] = 0
        for c in range(d):
            for t in range(size):
                s[t] += q[i, c] * kt[c, j + t]
        new = m
        for t in range(size):
            s[t] /= math.sqrt(d)
            new = max(new, s[t])
        shrink = math.exp(m - new)
        l *= shrink
        for c in range(d):
            out[c] *= shrink
        for t in range(size):
            p = math.exp(s[t] - new)
            l += p
            for c in range(d):
                out[c] += p * v[j + t, c]
        m = new
    for c in range(d):
        out[c] /= l
    # END SOLUTION


# %% tags=["mistake"]
# Drops the tail tile.
def one_query(i, q, kt, v, s, out):
    tile = s.shape[0]
    seen = (i + 1) // tile * tile
    scores = q[i] @ kt[:, :seen] / math.sqrt(q.shape[1])
    if seen:
        weights = np.exp(scores - scores.max())
        out[:] = weights / weights.sum() @ v[:seen]


# %% tags=["mistake"]
# Looks at one key too many.
def one_query(i, q, kt, v, s, out):
    seen = min(i + 2, len(v))
    scores = q[i] @ kt[:, :seen] / math.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max())
    out[:] = weights / weights.sum() @ v[:seen]


# %%
@exercise("one_query")
def check_one_query():
    for n, tile in ((1, 4), (4, 4), (5, 4), (9, 2)):
        q, k, v = inputs(n, d=2, seed=1, dtype=np.float64)
        expected = plain(q, k, v)
        for i in range(n):
            out = np.full(2, np.nan)
            one_query(i, q, k.T, v, np.full(tile, np.nan), out)
            assert n > 1 or np.isfinite(out).all(), "one_query leaves the NaN in out: write the answer there"
            error = np.abs(out - expected[i]).max()
            assert error <= 1e-12, f"{n} tokens, tiles of {tile}, query {i}: {out}, expected {expected[i]}"


# %% [markdown]
# Compile it, and loop over the queries. A version of the same loops is given here, so that the lesson goes on
# if yours is not ready.


# %%
@numba.njit
def attend(q, kt, v, s, out):
    n, d = q.shape
    for i in range(n):
        m, l = -np.inf, 0.0
        out[i] = 0
        for j in range(0, i + 1, s.shape[0]):
            size = min(s.shape[0], i + 1 - j)
            s[:size] = 0
            for c in range(d):
                for t in range(size):
                    s[t] += q[i, c] * kt[c, j + t]
            new = max(m, s[:size].max())
            shrink = math.exp(m - new)
            l, m = l * shrink, new
            out[i] *= np.float32(shrink)
            for t in range(size):
                p = np.float32(math.exp(s[t] - new))
                l += p
                for c in range(d):
                    out[i, c] += p * v[j + t, c]
        out[i] /= np.float32(l)


def compiled(q, k, v, tile=64):
    out = np.full_like(v, np.nan)
    attend(q / np.float32(math.sqrt(q.shape[1])), np.ascontiguousarray(k.T), v, np.empty(tile, q.dtype), out)
    return out


begin = time.perf_counter()
compiled(*inputs(8))
first = time.perf_counter() - begin
begin = time.perf_counter()
compiled(*inputs(8))
print(
    f"first call {first:.1f} s, second {1e6 * (time.perf_counter() - begin):.0f} µs: the first one compiles"
)

# %% [markdown]
# ## 4. The same loops on a GPU
#
# A GPU runs thousands of threads. They come in *blocks*; the threads of a block share a small fast memory and
# can wait for each other. The text below is CUDA C, as CuPy takes it: one thread for each query, the keys and
# values in tiles that the block loads together. Compare it with `attend`: `__shared__` is the tile, and the
# outer loop over queries is gone, since the grid *is* that loop.

# %%
CUDA = r"""
extern "C" __global__
void attend(const float* q, const float* k, const float* v, float* out, int n, float scale) {
    __shared__ float tile_k[TILE * WIDTH], tile_v[TILE * WIDTH];
    int i = blockIdx.x * blockDim.x + threadIdx.x;              // my query
    float m = -INFINITY, l = 0, mine[WIDTH], a[WIDTH];
    for (int c = 0; c < WIDTH; c++) { mine[c] = i < n ? q[i * WIDTH + c] * scale : 0; a[c] = 0; }
    int last = min(n, (int)((blockIdx.x + 1) * blockDim.x));    // no query here looks further
    for (int j = 0; j < last; j += TILE) {
        for (int x = threadIdx.x; x < TILE * WIDTH; x += blockDim.x) {
            bool real = j * WIDTH + x < n * WIDTH;
            tile_k[x] = real ? k[j * WIDTH + x] : 0;
            tile_v[x] = real ? v[j * WIDTH + x] : 0;
        }
        __syncthreads();                                        // the tile is complete
        for (int t = 0; t < TILE && j + t <= i && j + t < n; t++) {
            float s = 0;
            for (int c = 0; c < WIDTH; c++) s += mine[c] * tile_k[t * WIDTH + c];
            float larger = fmaxf(m, s), shrink = expf(m - larger), p = expf(s - larger);
            l = l * shrink + p;
            for (int c = 0; c < WIDTH; c++) a[c] = a[c] * shrink + p * tile_v[t * WIDTH + c];
            m = larger;
        }
        __syncthreads();                                        // nobody needs the tile any more
    }
    if (i < n) for (int c = 0; c < WIDTH; c++) out[i * WIDTH + c] = a[c] / l;
}
"""
print(
    f"{len(CUDA.splitlines()) - 2} lines; the grid for N = 1000 and 128 threads is {-(-1000 // 128)} blocks"
)

# %% [markdown]
# Three lines deserve a second look. `i < n`: the last block has threads without a query; they must help to
# load tiles, but must not write. The two `__syncthreads()`: without the first a thread reads a tile that is
# half loaded, without the second a fast thread overwrites a tile that a slow one still reads.
#
# ### Exercise 4: which thread does what?
#
# Write the index arithmetic, and run it on the CPU for every block and thread. Each query must have exactly
# one thread, whatever $N$.


# %%
def query_of(block, thread, threads, n):
    """The query of a thread, or -1 for a thread that has none. `threads` says how many a block has."""
    # BEGIN SOLUTION
    i = block * threads + thread
    return i if i < n else -1
    # END SOLUTION


# %% tags=["mistake"]
# Forgets the threads behind the end.
def query_of(block, thread, threads, n):
    return block * threads + thread


# %% tags=["mistake"]
# Counts blocks where threads belong: some queries have several threads, others none.
def query_of(block, thread, threads, n):
    i = block + thread * threads
    return i if i < n else -1


# %%
@exercise("query_of")
def check_query_of():
    for n, threads in ((1, 4), (4, 4), (5, 4), (130, 32)):
        blocks = -(-n // threads)
        found = [query_of(b, t, threads, n) for b in range(blocks) for t in range(threads)]
        assert found[0] is not None, "query_of gives nothing back yet: return the number of a query, or -1"
        words = f"{n} queries, {blocks} blocks of {threads} threads"
        beyond = [i for i in found if i >= n]
        assert not beyond, f"{words}: a thread would write to query {beyond[0]}, which does not exist"
        real = sorted(i for i in found if i >= 0)
        assert real == list(range(n)), (
            f"{words}: the queries that have a thread are {real}, one each is needed"
        )


# %%
n, threads = 21, 8
blocks = -(-n // threads)
grid = np.array([[b * threads + t for t in range(threads)] for b in range(blocks)])
picture = Picture(7, 2.4)
axes = picture.subplots()
axes.imshow(
    np.where(grid < n, grid // threads % 2 + 1.0, np.nan), cmap="Blues", vmin=0, vmax=4, aspect="auto"
)
for b in range(blocks):
    for t in range(threads):
        axes.text(t, b, str(grid[b, t]) if grid[b, t] < n else "idle", ha="center", va="center", fontsize=9)
axes.set(xlabel="thread", ylabel="block", xticks=range(threads), yticks=range(blocks))
axes.set_title(f"who answers which of {n} queries: the last block has idle threads", fontsize=10)
picture

# %% [markdown]
# On a machine with a GPU, the next cell compiles the text and compares. Elsewhere it says so: *not run* is
# not *passed*.

# %%
try:
    import cupy
except ImportError:
    gpu = "not run: CuPy is not installed here"
else:
    gpu = "not run: no GPU here"
    if cupy.cuda.is_available():
        q, k, v = inputs(1000)
        names = {"TILE": "64", "WIDTH": "32"}
        kernel = cupy.RawKernel("".join(f"#define {a} {b}\n" for a, b in names.items()) + CUDA, "attend")
        out = cupy.full((1000, 32), cupy.nan, cupy.float32)
        arrays = [cupy.asarray(x) for x in (q, k, v)]
        kernel((8,), (128,), (*arrays, out, np.int32(1000), np.float32(32**-0.5)))
        gpu = f"differs from plain by {np.abs(cupy.asnumpy(out) - plain(q, k, v)).max():.0e}"
print("CUDA:", gpu)

# %% [markdown]
# ## 5. Measure
#
# First the answers, then the times: a fast wrong kernel is no kernel. How close must it be? Exactly equal is
# impossible, since sums are taken in another order. A fair rule: at most twice as far from the answer in
# float64 as the plain code in the same precision.

# %%
forms = {"plain": plain, "in blocks": blocked, "compiled": compiled}
print(f"{'':10}" + "".join(f"N = {n:<8}" for n in (65, 512)))
for name, form in forms.items():
    ratios = []
    for n in (65, 512):
        exact = plain(*inputs(n).astype(np.float64))
        errors = [np.abs(f(*inputs(n)) - exact).max() for f in (form, plain)]
        ratios.append(errors[0] / errors[1])
    print(f"{name:10}" + "".join(f"{r:<12.2f}" for r in ratios) + "times the error of the plain code")

# %% [markdown]
# Now the times: interleaved, so that what else the machine does hits all alike, and medians. Seconds mean
# nothing on another machine; ratios do, a little.

# %%
times = {name: [] for name in forms}
for n in lengths:
    arrays, samples = inputs(n), {name: [] for name in forms}
    for _ in range(5):
        for name, form in forms.items():
            begin = time.perf_counter()
            form(*arrays)
            samples[name].append(time.perf_counter() - begin)
    for name, values in samples.items():
        times[name].append(1e3 * np.median(values))
picture = Picture(6, 3.2)
axes = picture.subplots()
for name, color in zip(forms, (ORANGE, BLUE, GREEN)):
    axes.loglog(lengths, times[name], "o-", color=color, label=name)
axes.set(xlabel="tokens N", ylabel="milliseconds, one thread", xticks=lengths, xticklabels=lengths)
axes.minorticks_off()
axes.legend(fontsize=8)
picture

# %% [markdown]
# All three grow with $N^2$ in time: tiles save memory and the upper triangle, not the order of growth. A
# matrix product inside NumPy is the work of many people over many years; loops compiled from a page of
# Python need not beat it. What they win is everything around the product.
#
# ## 6. Your own variant
#
# `alibi` lowers the score of a key by its distance times a slope, and fixes one slope for each head. What if
# every head learns its slope? We call it *fading attention*. With $r_h > 0$ the learned rate of head $h$:
#
# $$s_{ij} = \frac{q_i \cdot k_j}{\sqrt d} - r_h\,(i - j)$$
#
# Nobody has written a reference for it. Still there is much that must hold: no token sees the future,
# gradients are the slopes of the values, what one example of a batch holds is nothing to the others, masks
# hide, huge inputs stay finite. That is what `check_variant` checks.
#
# ### Exercise 5: fading attention
#
# Write `forward`. `self.rate` is $\log r_h$ for each head. `ops.softmax_attention` takes a `bias` that is
# added to the scores, `(1, H, N, N)`.


# %%
class Fading(mt.nn.Module):
    """Attention whose heads learn how fast the past fades. x (B, N, D) -> (B, N, D)."""

    def __init__(self, dim, *, heads=2, seed=0, dtype="float32"):
        super().__init__()
        rng = mt.nn.init.generator(seed)
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (
            mt.nn.Linear(dim, dim, False, rng, dtype=dtype) for _ in range(4)
        )
        self.rate = mt.nn.Parameter(np.linspace(-3, 0, heads).astype(dtype))

    def forward(self, x, *, mask=None, rng=None):
        # BEGIN SOLUTION
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        i = np.arange(x.shape[1], dtype=x.dtype)
        # r_h (i - j), (1, H, N, N)
        fade = ops.exp(self.rate).reshape((1, -1, 1, 1)) * (i[:, None] - i)
        o = ops.softmax_attention(q, k, v, mask, causal=True, bias=-fade)
        return self.wo(ops.merge_heads(o))
        # END SOLUTION


# %% tags=["mistake"]
# Forgets that a token may not see the future.
def forward(self, x, *, mask=None, rng=None):
    q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
    i = np.arange(x.shape[1], dtype=x.dtype)
    fade = ops.exp(self.rate).reshape((1, -1, 1, 1)) * abs(i[:, None] - i)
    return self.wo(ops.merge_heads(ops.softmax_attention(q, k, v, mask, bias=-fade)))


Fading.forward = forward


# %% tags=["mistake"]
# Takes the rates out of the gradient, so that they are never learned.
def forward(self, x, *, mask=None, rng=None):
    q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
    i = np.arange(x.shape[1], dtype=x.dtype)
    fade = np.exp(self.rate.data).reshape((1, -1, 1, 1)) * (i[:, None] - i)
    return self.wo(ops.merge_heads(ops.softmax_attention(q, k, v, mask, causal=True, bias=-fade)))


Fading.forward = forward


# %%
@exercise("Fading")
def check_fading():
    layer, x = Fading(4, dtype="float64"), mt.tensor(np.random.default_rng(0).standard_normal((1, 3, 4)))
    y = layer(x)
    assert y is not None, "the forward of Fading gives nothing back yet: return (B, N, D)"
    assert y.shape == x.shape, f"an input of shape {x.shape} must give that shape, not {y.shape}"
    (y * y).sum().backward()
    assert layer.rate.grad is not None, "no gradient reaches self.rate: use ops.exp, not np.exp"
    check_variant(Fading, kind="token_mixer", claims=("causal",), examples=NOTEBOOK)
    # BEGIN HIDDEN TESTS
    layer.rate.data[:] = np.log(1e4)
    error = np.abs(layer(x).numpy() - layer.wo(layer.wv(x)).numpy()).max()
    assert error <= 1e-9, f"with enormous rates a token sees only itself; you are {error:.2g} from that"
    # END HIDDEN TESTS


# %% [markdown]
# The mixing patterns of two of its heads' rates, and of `alibi`: who influences whom (row: the token that is
# changed by the column).


# %%
class Faded(mt.nn.Module):
    """Fading attention as in the solution, with a switch that breaks it."""

    def __init__(self, dim, *, heads=2, seed=0, dtype="float32", rate=-1.0, bug=None):
        super().__init__()
        rng = mt.nn.init.generator(seed)
        self.heads, self.bug = heads, bug
        self.wq, self.wk, self.wv, self.wo = (
            mt.nn.Linear(dim, dim, False, rng, dtype=dtype) for _ in range(4)
        )
        self.rate = mt.nn.Parameter(np.full(heads, rate, dtype))

    def forward(self, x, *, mask=None, rng=None):
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        n, i = x.shape[1], np.arange(x.shape[1], dtype=x.dtype)
        rate = self.rate.data if self.bug == "rates are constants" else self.rate
        fade = ops.exp(rate).reshape((1, -1, 1, 1)) * (i[:, None] - i)
        hidden = {
            "the last token sees all": np.tri(n, dtype=bool) | (i[:, None] == n - 1),
            "one ahead": np.tri(n, k=1, dtype=bool),
        }
        visible = hidden.get(self.bug, np.tri(n, dtype=bool))
        if mask is not None and self.bug != "ignores the mask":
            visible = visible & mask
        if self.bug == "softmax written anew":
            e = ops.exp(q @ k.mT / math.sqrt(q.shape[-1]) - fade) * visible
            o = e / (e.sum(axis=-1, keepdims=True) + 1e-30) @ v
        else:
            scale = 1.0 if self.bug == "forgets the scale" else None
            o = ops.softmax_attention(q, k, v, visible, scale=scale, bias=-fade)
        if self.bug == "mixes the batch":
            o = o + 1e-3 * o.mean(axis=0, keepdims=True)
        return self.wo(ops.merge_heads(o))


x = mt.tensor(np.random.default_rng(0).standard_normal((1, 24, 16)))
shown = {f"rate {r}": Faded(16, dtype="float64", rate=math.log(r)) for r in (0.02, 0.5)}
shown["alibi"] = mt.build("softmax_attention", dim=16, heads=2, position="alibi", dtype="float64")
picture = Picture(8, 2.8)
for axes, (name, layer) in zip(picture.subplots(1, 3), shown.items()):
    axes.imshow(mixing_matrix(layer, x), cmap="Blues")
    axes.set(title=name, xlabel="changing token", ylabel="changed token")
picture

# %% [markdown]
# ## 7. Break it
#
# Six mistakes that people make. For each, which check sees it? Guess before you run. The checks never saw a
# right version: they know only what must hold.

# %%
bugs = [
    "one ahead", "ignores the mask", "softmax written anew", "mixes the batch", "rates are constants",
    "forgets the scale",
]  # fmt: skip
verdicts = {}
for bug in [None, *bugs]:
    report = check_variant(
        lambda dim, bug=bug, **options: Faded(dim, bug=bug, **options),
        kind="token_mixer", claims=("causal",), examples=NOTEBOOK, on_fail=None,
    )  # fmt: skip
    verdicts[bug] = [r.check for r in report.failed]
    print(f"{bug or 'no bug':22} {', '.join(verdicts[bug]) or 'all checks pass'}")

# %% [markdown]
# One of them passes. A forgotten scale breaks no promise: nothing leaks, the gradients are those of the
# values, all is finite. No check can know that you *meant* $\sqrt d$. What helps is a limit that you
# understand: with rates near zero nothing fades, and this must be plain softmax attention. The library calls
# such a sentence an *identity*. Every variant of the catalogue carries at least two.


# %%
def fades_not_at_all(bug):
    """How far a layer with tiny rates is from softmax attention with the same weights."""
    layer = Faded(16, dtype="float64", rate=-40.0, bug=bug)
    q, k, v = (ops.split_heads(w(x), 2) for w in (layer.wq, layer.wk, layer.wv))
    right = layer.wo(ops.merge_heads(ops.softmax_attention(q, k, v, causal=True)))
    return np.abs(layer(x).numpy() - right.numpy()).max()


limits = {bug: fades_not_at_all(bug) for bug in (None, "forgets the scale")}
for bug, error in limits.items():
    print(f"{bug or 'no bug':22} differs from softmax attention by {error:.0e}")

# %%
exact = inputs(300, dtype=np.float64)
online = np.abs(blocked(*exact) - plain(*exact)).max()
caught = sum(bool(found) for bug, found in verdicts.items() if bug)
speed = times["plain"][-1] / times["in blocks"][-1], times["plain"][-1] / times["compiled"][-1]
rows = [
    (
        "*FlashAttention* (arXiv:2205.14135): exact attention with memory linear in the length",
        f"memory from N = {lengths[0]} to {lengths[-1]}: "
        f"plain grows {plain_peaks[-1] / plain_peaks[0]:.0f} times, "
        f"in blocks {blocked_peaks[-1] / blocked_peaks[0]:.1f} times",
    ),
    (
        "the same: faster, since it moves less memory (on GPUs)",
        f"on one CPU core at N = {lengths[-1]}: in blocks {speed[0]:.1f} times as fast as plain, "
        f"compiled {speed[1]:.1f} times",
    ),
    (
        "*Online normalizer calculation for softmax* (arXiv:1805.02867): one pass is enough, exactly",
        f"in blocks and plain differ by {online:.0e} in float64",
    ),
    (
        "*QuickCheck* (Claessen, Hughes, ICFP 2000): properties find bugs without expected values",
        f"{caught} of {len(bugs)} planted bugs found without a reference; an identity shows "
        f"the other: off by {limits['forgets the scale']:.1g}, {limits[None]:.0e} without it",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - Give `attend` more than one head, and one thread for each with `numba.prange`. When do two threads pay?
# - Change the tile of `compiled` from 8 to 1024. Where is the best, and how large is your first cache?
# - Remove one `__syncthreads()` from the text. Which answers could be wrong, and would a test always see it?
# - Write the backward pass in blocks: keep only $o$ and $m + \log l$ of each query, and compute the weights
#   again. Check it with `mt.vjp`.
# - Let the rates of fading attention depend on the token. It is then a gated recurrence; compare with `gla`.
#
# ## Where to go next
#
# `minitf/ops/kernels.py` says how a kernel joins the library: three functions, `forward`, `vjp` and
# `supports`, under the name of an operation. `backends/minitf_numba/norms.py` is one to read.
# `CONTRIBUTING.md` has the six steps from your variant to the catalogue, and `minitf check FILE.py:NAME`
# checks it before that.
