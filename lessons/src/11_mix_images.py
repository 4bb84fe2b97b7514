# %% [markdown]
# # Mix the patches of an image eight ways
#
# **What you will do.** Cut digits into patches and put them back. Look at what windows, shifted windows,
# neighbourhoods and pooling connect. Then put eight mixers into one and the same network, at equal cost, and
# let them learn to read digits. One of them mixes nothing at all. At the end you add a mixer of your own.
#
# **What you will learn.** How an image becomes tokens; why windows are cheap and why they must shift; which
# pairs of cells the shift must hide; what a receptive field is and how to measure one; how to compare layers
# at equal cost; what the name *MetaFormer* claims, and how much of it comes out here.
#
# **What you need.** Lesson `02_build_attention`, and half a minute of patience: thirteen small networks
# are trained.
#
# **Variants.** `vit_patch_embed`, `swin_attention`, `neighborhood_attention`, `pool_mixer`,
# `axial_attention`, `mlp_mixer`, `gfnet_filter`, `softmax_attention`

# %%
import numpy as np
from IPython.display import Markdown

import minitf as mt
from minitf import ops
from minitf.models import ImageConfig, ImageModel
from minitf.testing import NOTEBOOK, check_variant, exercise
from minitf.viz import Picture, cost_against_length
from minitf.viz.picture import BLUE, GREEN, GREY, ORANGE

mt.use("reference")
np.set_printoptions(precision=3, suppress=True)
(images, labels), (test_images, test_labels) = mt.tasks.split_digits()
print(f"{len(images)} digits to learn from, {len(test_images)} to be tested on, each", images[0].shape)

# %% [markdown]
# ## 1. An image as a row of tokens
#
# A transformer wants a row of vectors. The simplest answer is the one of ViT: cut the image into squares of
# $p \times p$ pixels, *patches*, and make each a vector. An image of $8 \times 8$ pixels and $p = 2$ gives
# 16 tokens of 4 numbers.
#
# In NumPy this looks like one line: `image.reshape(16, 4)`. The middle picture shows what that line cuts out,
# drawn as squares. Is it what you want?

# %%
image = images[3]
wrong = image.reshape(16, 2, 2)
right = image.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 2, 2)


def as_tiles(axes, patches, title):
    wide = np.full((11, 11), np.nan)
    for i, patch in enumerate(patches):
        r, c = divmod(i, 4)
        wide[3 * r : 3 * r + 2, 3 * c : 3 * c + 2] = patch
    axes.set_facecolor("#BFD9EA")
    axes.imshow(wide, cmap="Greys", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)


picture = Picture(7.5, 2.7)
first, second, third = picture.subplots(1, 3)
first.imshow(image, cmap="Greys", vmin=0, vmax=1)
first.set_title(f"the digit {labels[3]}", fontsize=10)
as_tiles(second, wrong, "reshape(16, 4)")
as_tiles(third, right, "what a patch should be")
for axes in (first, second, third):
    axes.set(xticks=[], yticks=[])
picture

# %% [markdown]
# A plain `reshape` takes pixels in the order of memory: four neighbours of one row. A patch has two rows. So
# first split both axes in two, (4, 2, 4, 2) = (patch row, row inside, patch column, column inside), then
# bring the two inner axes to the end.
#
# ### Exercise 1: put the patches back
#
# Undo it. A model that draws images needs this at its end. The patches stand row by row, and each patch is
# flat, row by row.


# %%
def put_back(patches, rows, columns, p):
    """The image (rows, columns) from its patches (N, p * p), N = rows / p * columns / p."""
    # BEGIN SOLUTION
    grid = patches.reshape(rows // p, columns // p, p, p)
    return grid.transpose(0, 2, 1, 3).reshape(rows, columns)
    # END SOLUTION


# %% tags=["mistake"]
# A plain reshape: patches become strips.
def put_back(patches, rows, columns, p):
    return patches.reshape(rows, columns)


# %% tags=["mistake"]
# Takes rows for columns: right for square images only.
def put_back(patches, rows, columns, p):
    grid = patches.reshape(columns // p, rows // p, p, p)
    return grid.transpose(0, 2, 1, 3).reshape(rows, columns)


# %%
@exercise("put_back")
def check_put_back():
    for rows, columns, p in ((2, 2, 1), (2, 4, 2), (4, 6, 2), (6, 3, 3)):
        image = np.arange(1.0, rows * columns + 1).reshape(rows, columns)
        cut = image.reshape(rows // p, p, columns // p, p).transpose(0, 2, 1, 3).reshape(-1, p * p)
        answer = put_back(cut, rows, columns, p)
        words = f"{rows} x {columns} pixels, patches of {p} x {p}"
        assert answer is not None, "put_back gives nothing back yet: return the image (rows, columns)"
        assert np.shape(answer) == image.shape, f"{words}: the shape is {np.shape(answer)}"
        places = np.argwhere(answer != image)
        assert len(places) == 0, (
            f"{words}: pixel {tuple(places[0].tolist())} is {answer[tuple(places[0])]:.0f}, "
            f"not {image[tuple(places[0])]:.0f}"
        )
    # BEGIN HIDDEN TESTS
    digit = test_images[5]
    cut = digit.reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(-1, 16)
    error = np.abs(put_back(cut, 8, 8, 4) - digit).max()
    assert error <= 0, f"a digit in patches of 4 x 4 comes back changed, by up to {error}"
    # END HIDDEN TESTS


# %% [markdown]
# `vit_patch_embed` does this and more. Each patch $x$ becomes a token $x W + b$ of width $D$; a learned
# *class token* comes first; a learned vector for each *position* is added. With $W = I$ and all else zero,
# tokens are patches: a good way to see that nothing is lost.
#
# Why positions? What follows treats a row of tokens as a set, or nearly so. Below, the patches of the digit
# are shuffled. Each token goes through a tanh, which stands for any network, and then all are summed. The
# sum does not notice the shuffle without positions, and does with them.

# %%
embed = mt.build("vit_patch_embed", dim=4, channels=1, patch=2, grid=4, seed=0)
embed.patches.load_state_dict({"weight": np.eye(4), "bias": np.zeros(4)})
tokens = embed.patch_tokens(mt.tensor(image[None, :, :, None])).numpy()
fold_error = np.abs(tokens[0].reshape(16, 2, 2) - right).max()
print("tokens", tokens.shape, "differ from the patches by at most", fold_error)

order = np.random.default_rng(0).permutation(16)
shuffled = right[order].reshape(4, 4, 2, 2).transpose(0, 2, 1, 3).reshape(8, 8)
pair = mt.tensor(np.stack([image, shuffled])[..., None])
for name, make in (("without positions", embed.patch_tokens), ("with positions", embed)):
    turned = ops.tanh(make(pair)).sum(axis=1).numpy()
    print(f"{name:18} the two sums differ by {np.abs(turned[0] - turned[1]).max():.4f}")

# %% [markdown]
# ## 2. Windows, and why they shift
#
# Attention among all $N$ cells of a grid forms $N^2$ weights. Twice the side of an image is four times the
# cells and sixteen times the weights. Swin attention cuts the grid into windows of $w \times w$ cells, and
# cells attend inside their window only. That is $N w^2$ weights, linear in $N$.
#
# The price: nothing ever crosses the border of a window, however deep the network. The remedy: in every other
# block, *shift* the windows by $s = w/2$. The usual code does not shift the windows. It rolls the grid, so
# that the first $s$ rows and columns move behind the last ones, attends in regular windows, and rolls back.
#
# Let us see who sees whom. We take the gradient of one output cell with respect to all input cells: where it
# is not zero, the output depends on that input. This is the *receptive field* of the cell.


# %%
def field(layers, cell, side=8, dim=8):
    """How strongly the output at `cell` depends on every cell (side, side), after layers with skip paths."""
    rng = np.random.default_rng(0)
    x = mt.tensor(rng.standard_normal((1, side, side, dim)).astype("float32"))
    direction = rng.standard_normal(dim).astype("float32")

    def part(x):
        for layer in layers:
            x = x + layer(x)
        return (x[0, cell[0], cell[1]] * direction).sum()

    _, slope = mt.value_and_grad(part)(x)
    return np.sqrt(np.square(slope.numpy()[0]).sum(axis=-1))


def draw(axes, strength, cell, title, lines=()):
    seen = strength > 0
    shade = np.full(strength.shape, np.nan)
    shade[seen] = np.log10(strength[seen] / strength.max())
    axes.imshow(shade, cmap="Blues", vmin=-4, vmax=0.5)
    axes.plot(cell[1], cell[0], "s", color=ORANGE, markersize=4)
    for at in lines:
        axes.axhline(at - 0.5, color=GREY, linewidth=0.8)
        axes.axvline(at - 0.5, color=GREY, linewidth=0.8)
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{title}\nsees {seen.sum()} cells", fontsize=9)


regular = mt.build("swin_attention", dim=8, heads=2, window=4, seed=0)
shifted = mt.build("swin_attention", dim=8, heads=2, window=4, shift=2, seed=0)


def only_rolled(x):
    return ops.roll(regular(ops.roll(x, (-2, -2), (1, 2))), (2, 2), (1, 2))


picture = Picture(7.5, 3.1)
for axes, (title, layer, lines) in zip(
    picture.subplots(1, 3),
    (
        ("regular windows", regular, (4,)),
        ("rolled, nothing hidden", only_rolled, (2, 6)),
        ("shifted windows", shifted, (2, 6)),
    ),
):
    draw(axes, field([layer], (1, 1)), (1, 1), title, lines)
picture

# %% [markdown]
# The orange cell stands in the upper left corner. In the middle picture it sees the other three corners of
# the image: the roll made them neighbours. For a picture of a face, the left ear would look at the right
# shoulder. So a mask is needed: in a window of the rolled grid, two cells see each other only if they were
# neighbours before the roll, that is, if no cut lies between them. The cuts of the original grid lie at $s$,
# $s + w$, $s + 2w$, ...
#
# ### Exercise 2: the mask of the shifted windows
#
# Give each cell of the original grid a label that says between which cuts it lies, for rows and columns. Roll
# the labels as the grid is rolled, by $-s$ on both axes. Cut them into windows. Cells with equal labels see
# each other. For $s = 0$ everything inside a window is visible.


# %%
def shift_mask(side, w, s):
    """Boolean (M, w * w, w * w), True = visible, for the M windows of the rolled grid (side, side).

    w divides side. Windows and the cells inside them stand row by row.
    """
    # BEGIN SOLUTION
    between = (np.arange(side) - s) // w
    label = (side * between[:, None]) + between
    label = np.roll(label, (-s, -s), (0, 1))
    windows = label.reshape(side // w, w, side // w, w).transpose(0, 2, 1, 3).reshape(-1, w * w)
    return windows[:, :, None] == windows[:, None, :]
    # END SOLUTION


# %% tags=["mistake"]
# Hides nothing: forgets that the roll made new neighbours.
def shift_mask(side, w, s):
    return np.ones(((side // w) ** 2, w * w, w * w), bool)


# %% tags=["mistake"]
# Rolls the labels the wrong way.
def shift_mask(side, w, s):
    between = (np.arange(side) - s) // w
    label = np.roll((side * between[:, None]) + between, (s, s), (0, 1))
    windows = label.reshape(side // w, w, side // w, w).transpose(0, 2, 1, 3).reshape(-1, w * w)
    return windows[:, :, None] == windows[:, None, :]


# %% tags=["mistake"]
# Cuts rows only.
def shift_mask(side, w, s):
    between = (np.arange(side) - s) // w
    label = np.roll(side * between[:, None] + 0 * between, (-s, -s), (0, 1))
    windows = label.reshape(side // w, w, side // w, w).transpose(0, 2, 1, 3).reshape(-1, w * w)
    return windows[:, :, None] == windows[:, None, :]


# %%
@exercise("shift_mask")
def check_shift_mask():
    for side, w, s in ((2, 2, 0), (4, 2, 1), (6, 3, 1), (8, 4, 2)):
        mask = shift_mask(side, w, s)
        assert mask is not None, "shift_mask gives nothing back yet: return a boolean array (M, w * w, w * w)"
        windows, cells = (side // w) ** 2, w * w
        words = f"side {side}, w = {w}, s = {s}"
        shape = (windows, cells, cells)
        assert np.shape(mask) == shape, f"{words}: the shape is {np.shape(mask)}, not {shape}"
        for m, i, j in np.ndindex(shape):
            # Where the two cells were before the roll.
            (r, c), (r2, c2) = (
                ((m // (side // w) * w + a // w + s) % side, (m % (side // w) * w + a % w + s) % side)
                for a in (i, j)
            )
            near = abs(r - r2) < w and abs(c - c2) < w
            assert mask[m, i, j] == near, (
                f"{words}: in window {m}, cells {i} and {j} come from {r, c} and {r2, c2}: "
                f"they must {'see each other' if near else 'be hidden from each other'}"
            )


# %% [markdown]
# ## 3. Neighbourhoods: a window for each cell
#
# Neighbourhood attention gives each cell a window of its own: the $K \times K$ cells around it. At the border
# the window is pushed inside, so that every cell has $K^2$ keys. Nothing needs to be rolled or hidden.
#
# Now stack blocks. How far can a cell see after one, two, three of them? Guess for Swin with windows of 4
# without shift, with shift, for neighbourhoods of 3, pooling of 3, and a global Fourier filter (section 6),
# on a grid of 16 x 16. Then look. Grey lines are windows.

# %%
options = {"dim": 8, "heads": 2}
still = [mt.build("swin_attention", **options, window=4, seed=i) for i in range(3)]
moving = [mt.build("swin_attention", **options, window=4, shift=2 * (i % 2), seed=i) for i in range(3)]
near = [mt.build("neighborhood_attention", **options, window=3, seed=i) for i in range(3)]
pools = [mt.build("pool_mixer", dim=8, window=3) for i in range(3)]
filters = [mt.build("gfnet_filter", dim=8, grid=16, seed=i) for i in range(3)]
stacks = {
    "windows": still,
    "windows that shift": moving,
    "neighbourhoods": near,
    "pooling": pools,
    "Fourier filter": filters,
}
fields = {
    name: [field(stack[:depth], (6, 6), side=16) for depth in (1, 2, 3)] for name, stack in stacks.items()
}
reach = {name: [int((f > 0).sum()) for f in found] for name, found in fields.items()}
picture = Picture(8, 5.6)
grid = picture.subplots(3, 5)
for column, (name, found) in enumerate(fields.items()):
    for row, strength in enumerate(found):
        lines = (4, 8, 12) if "windows" in name else ()
        draw(grid[row, column], strength, (6, 6), name if row == 0 else "", lines)
for row in range(3):
    grid[row, 0].set_ylabel(f"{row + 1} block{'s' * (row > 0)}", fontsize=9)
picture

# %% [markdown]
# Windows that stay see their window for ever. Windows that shift double their reach, in each
# direction, with the second block.
# Neighbourhoods and pooling grow by one ring for each block, the same in all directions.
#
# There is a second difference. Move the image by one cell. A neighbourhood moves along. A window does not: a
# cell finds itself in another place of its window, with other partners. Measured for cells far from the
# border, as a share of the size of the output:

# %%
x = np.random.default_rng(1).standard_normal((1, 16, 16, 8)).astype("float32")
inner = np.s_[:, 4:12, 4:12]
moved = {}
for name, layer in (("windows", regular), ("neighbourhoods", near[0]), ("pooling", pools[0])):
    before = np.roll(layer(mt.tensor(x)).numpy(), (1, 1), (1, 2))[inner]
    after = layer(mt.tensor(np.roll(x, (1, 1), (1, 2)))).numpy()[inner]
    moved[name] = np.abs(after - before).max() / np.abs(before).max()
    print(f"{name:16} image moved by one cell: the output differs by {moved[name]:.1e}")

# %% [markdown]
# ## 4. Pooling: mixing without anything learned
#
# How simple can a mixer be? `pool_mixer` replaces every cell by the mean around it. Nothing is learned, and
# no cell decides where to look. With $U_n$ the cells of the $k \times k$ window around cell $n$ that exist:
#
# $$y_n = \frac{1}{|U_n|} \sum_{m \in U_n} x_m - x_n$$
#
# Why minus $x_n$? In a block a mixer stands beside a skip path, which adds $x_n$ back. So
# mixer and skip path together give the mean (exactly, if no norm stands before the mixer).
#
# ### Exercise 3: pooling minus identity
#
# Write it for one channel. Mind the border: a corner has four cells for $k = 3$, not nine.


# %%
def pool_minus_identity(x, k):
    """y (rows, columns) from x (rows, columns) and an odd window k."""
    # BEGIN SOLUTION
    half, y = k // 2, np.empty(x.shape)
    for r, c in np.ndindex(x.shape):
        y[r, c] = x[max(0, r - half) : r + half + 1, max(0, c - half) : c + half + 1].mean()
    return y - x
    # END SOLUTION


# %% tags=["mistake"]
# Divides by nine at the border too: the image gets a dark frame.
def pool_minus_identity(x, k):
    half, y = k // 2, np.empty(x.shape)
    for r, c in np.ndindex(x.shape):
        y[r, c] = x[max(0, r - half) : r + half + 1, max(0, c - half) : c + half + 1].sum() / k**2
    return y - x


# %% tags=["mistake"]
# Forgets to take the input away.
def pool_minus_identity(x, k):
    half, y = k // 2, np.empty(x.shape)
    for r, c in np.ndindex(x.shape):
        y[r, c] = x[max(0, r - half) : r + half + 1, max(0, c - half) : c + half + 1].mean()
    return y


# %%
@exercise("pool_minus_identity")
def check_pool_minus_identity():
    rng = np.random.default_rng(0)
    for x, k in ((np.full((2, 2), 9.0), 3), (rng.random((3, 4)), 3), (rng.random((6, 5)), 5)):
        answer = pool_minus_identity(x, k)
        assert answer is not None, "pool_minus_identity gives nothing back yet: return y (rows, columns)"
        assert np.shape(answer) == x.shape, f"x has the shape {x.shape}, y has {np.shape(answer)}"
        right = mt.build("pool_mixer", dim=1, window=k, dtype="float64")(mt.tensor(x[None, ..., None]))
        error = np.abs(answer - right.numpy()[0, ..., 0])
        at = np.unravel_index(error.argmax(), error.shape)
        words = "a constant map of nines" if x.shape == (2, 2) else f"random numbers {x.shape}"
        assert error.max() <= 1e-12, (
            f"{words}, k = {k}: y at {tuple(map(int, at))} is {answer[at]:.3f}, "
            f"not {right.numpy()[0, ..., 0][at]:.3f}"
        )


# %% [markdown]
# ## 5. What do they cost?
#
# `mt.profile` counts every addition and multiplication. For a width of $D = 32$, on grids from 4 x 4 to
# 32 x 32 cells:

# %%
sides = [4, 8, 16, 32]


def priced(name, **more):
    def build(n):
        side = round(n**0.5)
        layer = mt.build(name, dim=32, **more)
        return layer, (mt.zeros((1, n, 32) if name == "softmax_attention" else (1, side, side, 32)),)

    return cost_against_length(build, [side**2 for side in sides])


prices = {
    "softmax_attention": priced("softmax_attention", causal=False),
    "axial_attention": priced("axial_attention"),
    "swin_attention": priced("swin_attention", window=4),
    "neighborhood_attention": priced("neighborhood_attention", window=3),
    "pool_mixer": priced("pool_mixer"),
}
picture = Picture(8, 3)
axes = picture.subplots()
for (name, cost), color in zip(prices.items(), (ORANGE, "#CC79A7", BLUE, GREEN, GREY)):
    axes.loglog(cost.lengths, cost.flops, "o-", color=color, label=f"{name}: N to the {cost.slopes[0]:.2f}")
axes.set(xlabel="cells N", ylabel="operations, one layer", xticks=[s**2 for s in sides])
axes.set_xticklabels([s**2 for s in sides])
axes.minorticks_off()
axes.legend(fontsize=8, title="growth at the end", title_fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
picture

# %% [markdown]
# ### Exercise 4: count the products of window attention
#
# Before you trust a counter, count once yourself. Window attention has four maps of $D \times D$ for every
# cell (query, key, value, output). Each cell forms its scores with the $w^2$ cells of its window, and sums
# their values with those weights. A multiplication with its addition counts as 2. Softmax and the like are
# left out. How many heads there are plays no part: why?


# %%
def window_products(rows, columns, dim, w):
    """Operations in the matrix products of window attention on a grid (rows, columns) that w divides."""
    # BEGIN SOLUTION
    cells = rows * columns
    return 8 * cells * dim**2 + 4 * cells * w**2 * dim
    # END SOLUTION


# %% tags=["mistake"]
# Counts a multiplication with its addition as one.
def window_products(rows, columns, dim, w):
    return 4 * rows * columns * dim**2 + 2 * rows * columns * w**2 * dim


# %% tags=["mistake"]
# Forgets the sum of the values.
def window_products(rows, columns, dim, w):
    return 8 * rows * columns * dim**2 + 2 * rows * columns * w**2 * dim


# %% tags=["mistake"]
# Every cell with every cell.
def window_products(rows, columns, dim, w):
    return 8 * rows * columns * dim**2 + 4 * (rows * columns) ** 2 * dim


# %%
@exercise("window_products")
def check_window_products():
    for rows, columns, dim, w in ((1, 1, 2, 1), (2, 2, 2, 2), (4, 8, 8, 2), (8, 8, 16, 4)):
        answer = window_products(rows, columns, dim, w)
        assert answer is not None, "window_products gives nothing back yet: return a number of operations"
        layer = mt.build("swin_attention", dim=dim, heads=2, window=w)
        with mt.no_grad(), mt.profile() as p:
            layer(mt.zeros((1, rows, columns, dim)))
        counted = sum(row.flops for row in p.rows if row.name == "matmul")
        assert answer == counted, (
            f"grid {rows} x {columns}, dim {dim}, w = {w}: the products take {counted}, you say {answer}"
        )


# %% [markdown]
# ## 6. MetaFormer: does the mixer matter?
#
# A transformer block is norm, mixer, skip path; norm, channel network, skip path. People have replaced the
# attention in it by nearly everything. The *MetaFormer* paper says: what makes these networks good is the
# block, not the mixer. Its witness is pooling.
#
# Eight mixers in the same network: two blocks of width 32, patches of 2 x 2, so a grid of 4 x 4 cells.
#
# | Mixer | A cell hears |
# |---|---|
# | `softmax_attention` | all cells, weights from the content |
# | `swin_attention` | its window of 2 x 2; shifted by 1 in the second block |
# | `neighborhood_attention` | the 3 x 3 cells around it |
# | `axial_attention` | its row and its column |
# | `gfnet_filter` | all cells, one learned filter for each channel (by Fourier transform) |
# | `mlp_mixer` | all cells, one small learned network across cells, the same for all channels |
# | `pool_mixer` | the mean of the 3 x 3 cells around it |
# | nothing | only itself: pooling with a window of 1 gives 0 |
#
# Guess: which is best, which is worst, and how far apart?
#
# To be fair, all must cost the same. What a cheap mixer saves goes into the hidden width of the channel
# network (two maps with a ReLU between). Its cost is linear in that width, so two measurements give it.


# %%
def network(mixer="softmax_attention", width=64, seed=0, **more):
    config = ImageConfig(
        size=(8, 8), patch=2, dim=32, depth=2, heads=4, attention=mixer, attention_options=more,
        ffn="relu", ffn_hidden=width, norm="layernorm",
    )  # fmt: skip
    model = ImageModel(config, seed=seed)
    if mixer == "swin_attention":
        model.blocks[1].mixer.inner.shift = 1
    # Positions start tenfold: from 0.02 they would take most of so short a training to grow.
    model.position.weight.data *= 10
    return model


def price(model):
    with mt.no_grad(), mt.profile() as p:
        model(test_images[:1])
    return p.flops


mixers = {
    "softmax_attention": {}, "swin_attention": {"window": 2},
    "neighborhood_attention": {"window": 3, "bias_axes": 2}, "axial_attention": {}, "gfnet_filter": {},
    "mlp_mixer": {"hidden": 1}, "pool_mixer": {}, "nothing": {"window": 1},
}  # fmt: skip
target, hidden, cost, parameters = price(network()), {}, {}, {}
for name, more in mixers.items():
    kind = "pool_mixer" if name == "nothing" else name
    a, b = (price(network(kind, width, **more)) for width in (8, 16))
    hidden[name] = round(8 + 8 * (target - a) / (b - a))
    model = network(kind, hidden[name], **more)
    cost[name], parameters[name] = price(model), model.count_parameters()
    print(f"{name:23} hidden {hidden[name]:4}: {cost[name]:,} operations, {parameters[name]:,} parameters")
spread = max(cost.values()) / min(cost.values()) - 1
print(f"the dearest costs {spread:.1%} more than the cheapest")

# %% [markdown]
# `mlp_mixer` is a whole block with a channel half of its own. That half is set to width 1 here, so that the
# channel network of the host does the work.
#
# Each trains for 140 steps on the same batches of 32 digits, with the same learning rate for all, in one run
# (one seed). This is a race over a short distance: it measures how fast a mixer learns as much as how good it
# is.


# %%
def train(model, steps=140, seed=0):
    """Train in place; gives the loss of each step."""
    rng, losses = np.random.default_rng(seed), []
    optimizer = mt.train.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.groups[0]["lr"] = mt.train.warmup_cosine(step, steps, 20, 1e-2, 5e-4)
        pick = rng.integers(len(images), size=32)
        loss = model.loss(images[pick], labels[pick])
        optimizer.zero_grad()
        loss.backward()
        mt.train.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


curves, accuracy = {}, {}
for name, more in mixers.items():
    model = network("pool_mixer" if name == "nothing" else name, hidden[name], **more)
    curves[name] = train(model)
    accuracy[name] = model.accuracy(test_images, test_labels)
    print(f"{name:23} {accuracy[name]:.3f} of the test digits are right")

# %% [markdown]
# How good is that? Two things to hold against it. First a **linear baseline**: least squares from the 64
# pixels to ten numbers, no network at all. Second the **noise of the test**: with $n = 360$ digits and an
# accuracy $a$, chance alone moves the result by about $\sqrt{a (1 - a) / n}$. These are the bars' whiskers.
# Another seed moves it too: we
# train pooling and attention once more below.

# %%
flat, flat_test = (np.c_[x.reshape(-1, 64), np.ones(len(x))] for x in (images, test_images))
solution = np.linalg.lstsq(flat, np.eye(10)[labels], rcond=None)[0]
linear = float(((flat_test @ solution).argmax(axis=1) == test_labels).mean())
noise = {name: (a * (1 - a) / len(test_labels)) ** 0.5 for name, a in accuracy.items()}
ranked = sorted(accuracy, key=accuracy.get)
picture = Picture(8, 3.4)
left, right_axes = picture.subplots(1, 2, width_ratios=(1.25, 1))
colors = [ORANGE if "attention" in name else GREY if name == "nothing" else BLUE for name in ranked]
left.barh(ranked, [accuracy[n] for n in ranked], xerr=[noise[n] for n in ranked], color=colors, height=0.7)
left.axvline(linear, color="black", linestyle="--", linewidth=1)
left.text(linear - 0.005, 7.7, f"linear {linear:.3f}", ha="right", va="bottom", fontsize=8)
left.set(xlim=(0.6, 1), xlabel="right of 360 test digits", ylim=(-0.6, 8.4))
left.tick_params(labelsize=8)
smooth = np.ones(15) / 15
for name, color in (
    ("softmax_attention", ORANGE), ("pool_mixer", BLUE), ("gfnet_filter", GREEN), ("nothing", GREY),
):  # fmt: skip
    right_axes.semilogy(np.convolve(curves[name], smooth, "valid"), color=color, label=name)
right_axes.set(xlabel="step", ylabel="loss, mean of 15 steps", ylim=(0.1, 2.6))
right_axes.set_yticks([0.1, 0.3, 1, 2], ["0.1", "0.3", "1", "2"])
right_axes.minorticks_off()
right_axes.legend(fontsize=8, loc="lower left")
picture

# %%
again = {}
for name in ("pool_mixer", "softmax_attention"):
    model = network(name, hidden[name], seed=1)
    train(model, seed=1)
    again[name] = model.accuracy(test_images, test_labels)
a, b = accuracy["pool_mixer"], accuracy["softmax_attention"]
both = (noise["pool_mixer"] ** 2 + noise["softmax_attention"] ** 2) ** 0.5
mixing = {name: value for name, value in accuracy.items() if name != "nothing"}
second = again["pool_mixer"] - again["softmax_attention"]
print(f"pooling less attention: {a - b:+.3f}, second seed {second:+.3f}; noise of the test {both:.3f}")
print(f"the seven that mix: from {min(mixing.values()):.3f} to {max(mixing.values()):.3f}")
print(f"no mixing at all: {accuracy['nothing']:.3f}; chance would be 0.100")
print("better than the linear map:", ", ".join(n for n in ranked if accuracy[n] > linear) or "none")

# %% [markdown]
# Three readings.
#
# - *Pooling is no worse than attention*, with both seeds, and it has nothing to learn in its mixer. This is
#   the witness of the paper, and it comes out.
# - *A network that mixes nothing is far above chance.* Each patch votes by itself, knowing only its place,
#   and the mean counts the votes. Most of what is needed is in the block.
# - *But the mixer is not nothing.* The gap between the best mixer and none is many times the noise. And a
#   linear map is a hard opponent: digits of 8 x 8 pixels all stand in the middle, so each pixel has a fixed
#   meaning. The size of this experiment limits what it can say about photographs.
#
# ### Take the block apart
#
# If the block is what matters, breaking the block must hurt. The paper reports that without the skip path, or
# without the channel network, its pooling network does not learn. We remove each, keeping the pooling.


# %%
class NoSkip(mt.nn.Module):
    def __init__(self, block):
        self.norm1, self.mixer, self.norm2, self.ffn = block.norm1, block.mixer, block.norm2, block.ffn

    def forward(self, x, rng=None):
        return self.ffn(self.norm2(self.mixer(self.norm1(x))))


class Silent(mt.nn.Module):
    def forward(self, x):
        return 0 * x


broken = {}
for name in ("skip path", "channel network"):
    model = network("pool_mixer", hidden["pool_mixer"])
    if name == "skip path":
        model.blocks = [NoSkip(block) for block in model.blocks]
    else:
        for block in model.blocks:
            block.ffn = Silent()
    train(model)
    broken[name] = model.accuracy(test_images, test_labels)
    print(f"without the {name:16} {broken[name]:.3f}   (whole: {accuracy['pool_mixer']:.3f})")

# %% [markdown]
# One of the two comes out clearly. Without the channel network, pooling is little more than a blur followed
# by a linear map, and the network reads fewer digits than the one without any mixing. The skip path hardly
# counts here, for the network has two blocks. The paper's have twelve and more, and a signal must get through
# all of them.
#
# ## 7. A mixer of your own
#
# Between pooling, where all neighbours count alike, and attention, where the content decides, lies the
# simplest thing that learns: each channel has five numbers, for the cell itself and its four neighbours.
#
# $$y_{rc} = a \odot x_{rc} + b \odot x_{r-1,c} + d \odot x_{r+1,c} + e \odot x_{r,c-1} + f \odot x_{r,c+1}$$
#
# Cells outside count as zero; $\odot$ multiplies channel by channel. A photographer's name for it would be a
# filter; here it is a *cross*.
#
# ### Exercise 5: the cross
#
# Write `forward`. The rows of `self.weight` (5, D) are $a, b, d, e, f$ in this order. `ops.pad` puts zeros
# around; slices do the rest. `check_variant` then attacks it: gradients, types, batches, memory layouts.


# %%
class Cross(mt.nn.Module):
    """x (B, rows, columns, D) -> the same shape."""

    def __init__(self, dim, *, seed=0, dtype="float32"):
        rng = mt.nn.init.generator(seed)
        self.weight = mt.nn.Parameter((0.4 * rng.standard_normal((5, dim))).astype(dtype))

    def forward(self, x, *, rng=None):
        # BEGIN SOLUTION
        rows, columns = x.shape[1:3]
        wide = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        # Where in `wide` the cell, its upper, lower, left and right neighbours begin.
        starts = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
        return sum(self.weight[i] * wide[:, r : r + rows, c : c + columns] for i, (r, c) in enumerate(starts))
        # END SOLUTION


# %% tags=["mistake"]
# Rolls: the last row becomes the neighbour of the first.
def forward(self, x, *, rng=None):
    y = self.weight[0] * x
    for i, (step, axis) in enumerate(((1, 1), (-1, 1), (1, 2), (-1, 2))):
        y = y + self.weight[i + 1] * ops.roll(x, step, axis)
    return y


Cross.forward = forward


# %% tags=["mistake"]
# Takes left for right and up for down.
def forward(self, x, *, rng=None):
    rows, columns = x.shape[1:3]
    wide = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    starts = ((1, 1), (2, 1), (0, 1), (1, 2), (1, 0))
    return sum(self.weight[i] * wide[:, r : r + rows, c : c + columns] for i, (r, c) in enumerate(starts))


Cross.forward = forward


# %% tags=["mistake"]
# Takes the weights out of the gradient, so that they are never learned.
def forward(self, x, *, rng=None):
    rows, columns = x.shape[1:3]
    wide = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    starts = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return sum(
        self.weight.data[i] * wide[:, r : r + rows, c : c + columns] for i, (r, c) in enumerate(starts)
    )


Cross.forward = forward


# %%
@exercise("Cross")
def check_cross():
    layer = Cross(1, dtype="float64")
    layer.weight.data[:, 0] = [1, 10, 100, 1000, 10000]
    for cell in ((0, 0), (1, 1)):
        x = np.zeros((1, 3, 3, 1))
        x[0, cell[0], cell[1], 0] = 1
        y = layer(mt.tensor(x))
        assert y is not None, "the forward of Cross gives nothing back yet: return (B, rows, columns, D)"
        assert y.shape == x.shape, f"an input of shape {x.shape} must give that shape, not {y.shape}"
        right = np.zeros((5, 5))
        for number, (r, c) in zip((1, 10, 100, 1000, 10000), ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))):
            right[1 + cell[0] + r, 1 + cell[1] + c] = number
        wrong = np.argwhere(y.numpy()[0, :, :, 0] != right[1:-1, 1:-1])
        assert len(wrong) == 0, (
            f"a, b, d, e, f = 1, 10, 100, 1000, 10000, and x is 1 at {cell}, else 0: y at "
            f"{tuple(wrong[0].tolist())} is {y.numpy()[0, wrong[0][0], wrong[0][1], 0]:.0f}, "
            f"not {right[1:-1, 1:-1][tuple(wrong[0])]:.0f}"
        )
    assert y.requires_grad, "no gradient reaches self.weight: use self.weight, not self.weight.data"
    check_variant(Cross, kind="token_mixer", grid="2d", claims=("batch_independent",), examples=NOTEBOOK)


# %% [markdown]
# Does it read digits? If your cross is ready, the next cell puts it into the network in place of the pooling
# and trains it on the same batches. The hidden width is that of the pooling network, so the cost is close.

# %%
model = network("pool_mixer", hidden["pool_mixer"])
for i, block in enumerate(model.blocks):
    block.mixer.inner = Cross(32, seed=i)
if model.blocks[0].mixer.inner(mt.zeros((1, 4, 4, 32))) is None:
    cross = None
    print("Cross is not written yet: this cell waits for exercise 5")
else:
    train(model)
    cross = model.accuracy(test_images, test_labels)
    print(f"your cross: {cross:.3f} at {price(model):,} operations; pooling {accuracy['pool_mixer']:.3f}")

# %%
slopes = {name: cost.slopes[0] for name, cost in prices.items()}
rows = [
    (
        "*An Image is Worth 16x16 Words* (arXiv:2010.11929), equation 1: an image is a row of patches, "
        "mapped linearly",
        f"with the identity as map the tokens are the patches, difference {fold_error:.0f}",
    ),
    (
        "*Swin Transformer* (arXiv:2103.14030), 3.2: cost linear in the number of patches; the shift "
        "connects neighbouring windows",
        f"cost grows as N to the {slopes['swin_attention']:.2f}, of full attention "
        f"{slopes['softmax_attention']:.2f} (up to {sides[-1] ** 2} cells); after two blocks a cell sees "
        f"{reach['windows'][1]} cells without shift, {reach['windows that shift'][1]} with it",
    ),
    (
        "*Neighborhood Attention Transformer* (arXiv:2204.07143): linear cost; the field grows without "
        "shifts; moves with the image, unlike windows",
        f"N to the {slopes['neighborhood_attention']:.2f}; {', '.join(map(str, reach['neighbourhoods']))} "
        f"cells after 1, 2, 3 blocks; moved image: changes {moved['neighbourhoods']:.2g} "
        f"against {moved['windows']:.2g}",
    ),
    (
        "*MetaFormer Is Actually What You Need for Vision* (arXiv:2111.11418): pooling in place of attention "
        "is competitive",
        f"at equal operations, two seeds: pooling {a:.3f}, {again['pool_mixer']:.3f}, attention {b:.3f}, "
        f"{again['softmax_attention']:.3f}; noise of a difference {both:.3f}; "
        f"but the linear map has {linear:.3f}",
    ),
    (
        "the same, ablations: without skip paths, or without the channel network, it does not learn",
        f"whole {a:.3f}; no skip paths {broken['skip path']:.3f}, at two blocks not confirmed; "
        f"no channel network {broken['channel network']:.3f}, worse, but far above chance",
    ),
    (
        "*MetaFormer Baselines for Vision* (arXiv:2210.13452), abstract: no mixing at all still exceeds 80% "
        "on ImageNet, the best mixers 85%",
        f"on 8 x 8 digits: nothing {accuracy['nothing']:.3f}, best {max(mixing.values()):.3f}",
    ),
]
table = "\n".join(f"| {claim} | {measured} |" for claim, measured in rows)
Markdown(f"## What the papers say, what we measured\n\n| The paper says | We measured |\n|---|---|\n{table}")

# %% [markdown]
# ## On your own
#
# - Train `softmax_attention`, `pool_mixer` and `nothing` for 600 steps. Which gaps close? Which stay? Are the
#   gaps between seeds smaller than those between mixers?
# - Compare the loss of attention at the end with that of pooling, then the test digits. Who learns by heart?
# - Set `patch=1`: a grid of 8 x 8 cells. Who gains, who loses? Mind that the cost must be balanced anew.
# - Six blocks instead of two, without skip paths. Does the claim of the paper come out now?
# - Take the positions away (`position="none"`). Predict for each mixer: who can still tell a 6 from a 9?
# - Move the test digits by one pixel. Which mixer suffers most, and what does the linear map do?
#
# ## Where to go next
#
# Read `minitf/attention/swin_attention.py`: your mask is the function `visible` there, for grids that windows
# do not fill too. `cswin_attention`, `mdta` and `convnext_block` are three more ways to mix images. Lesson
# `08_draw_sparse_attention` draws the masks of sequences.
