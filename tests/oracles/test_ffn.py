"""Channel mixers and mixtures of heads against published code, values and gradients."""

from __future__ import annotations

from typing import Any

from minitf import Tensor, ops
from minitf.attention.moh import MoH
from minitf.ffn.cffn import CFFN
from minitf.ffn.cofr_ladder import cofr_ladder
from minitf.ffn.deepseek_moe import DeepSeekMoE
from minitf.ffn.memory_layer import MemoryLayer
from minitf.ffn.moe_aux_losses import balance_loss, importance_loss, load_loss, selection, z_loss
from minitf.ffn.pkm import PKM
from minitf.ffn.smoe_topk import SMoETopK
from minitf.ffn.spark_ffn import SparkFFN
from minitf.ffn.statistical_topk import statistical_topk
from minitf.nn import Linear
from tests.oracles.oracle import compare

EXACT = 1e-10
# These route, weigh slots, or hold a constant in float32.
SINGLE = 1e-5


def with_weights(layer: Any, weights: dict[str, Tensor]) -> Any:
    """The layer with the weights, or parameters, of these names replaced."""
    for name, value in weights.items():
        owner = getattr(layer, name)
        if isinstance(owner, Linear):
            owner.weight = value
        else:
            setattr(layer, name, value)
    return layer


def with_experts(layer: Any, router: Tensor, wg: Tensor, wu: Tensor, wd: Tensor) -> Any:
    layer.router.weight = router
    for e, expert in enumerate(layer.experts):
        with_weights(expert, {"wg": wg[e], "wu": wu[e], "wd": wd[e]})
    return layer


def test_smoe_topk() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        return with_experts(SMoETopK(6, experts=4, hidden=5, dtype="float64"), **weights)(x)

    compare("smoe_topk", run, SINGLE)


def test_deepseek_moe() -> None:
    def run(x: Tensor, bias: Tensor, sg: Tensor, su: Tensor, sd: Tensor, **weights: Tensor) -> Any:
        layer = DeepSeekMoE(
            6, experts=8, k=3, shared=2, hidden=3, route_scale=2.5, groups=4, group_limit=2, dtype="float64"
        )
        assert layer.bias is not None
        layer.bias.data = bias.data
        with_weights(layer.shared_expert, {"wg": sg, "wu": su, "wd": sd})
        return with_experts(layer, **weights)(x)

    compare("deepseek_moe", run, SINGLE)


def test_statistical_topk() -> None:
    compare("statistical_topk", lambda s: statistical_topk(s, 3), SINGLE)


def test_spark_ffn() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        layer = SparkFFN(8, hidden=16, split=3, k=4, act="gelu_tanh", dtype="float64")
        return with_weights(layer, weights)(x)

    compare("spark_ffn", run, SINGLE)


def test_balance_and_z_loss() -> None:
    def run(scores: Tensor) -> Any:
        rows = scores.reshape((-1, 5))
        return ops.stack([balance_loss(ops.softmax(rows), selection(rows, 2)), z_loss(scores).mean()])

    compare("moe_aux_losses", run, SINGLE)


def test_importance_and_load_loss() -> None:
    def run(scores: Tensor, noise: Tensor) -> Any:
        p = ops.softmax(scores)
        # That code takes the unbiased variance in both.
        return (importance_loss(p, unbiased=True) + load_loss(p, noise, 2, 0.2) * (5 / 4)) / 2.0

    compare("moe_aux_losses_load", run, SINGLE)


def product_keys(x: Tensor, bq: Tensor, batchnorm: bool, **weights: Tensor) -> Any:
    layer = PKM(6, heads=2, keys=5, k=3, key_dim=4, batchnorm=batchnorm, dtype="float64")
    layer.wq.bias = bq  # type: ignore[assignment]
    for name in {"weight", "bias"} & weights.keys():
        setattr(layer.norm, name, weights.pop(name))
    return with_weights(layer, weights)(x)


def test_pkm() -> None:
    compare("pkm", lambda **inputs: product_keys(batchnorm=False, **inputs), SINGLE)


def test_pkm_with_batch_norm_in_training_mode() -> None:
    compare("pkm_batchnorm", lambda **inputs: product_keys(batchnorm=True, **inputs), SINGLE)


def test_memory_layer() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        return with_weights(MemoryLayer(12, out=5, bits=4, dtype="float64"), weights)(x)

    compare("memory_layer", run, EXACT)


def test_moh() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        layer = MoH(12, heads=6, shared=2, routed=2, causal=False, balance=1.0, dtype="float64")
        with_weights(layer, weights)
        return ops.concat([layer(x).reshape((-1,)), layer.auxiliary_loss(x).reshape((1,))])

    # Its loss counts the choices in float32.
    compare("moh", run, SINGLE)


def test_cofr_ladder() -> None:
    compare("cofr_ladder", lambda a: cofr_ladder(a, 0.5), EXACT)


def test_cffn() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        layer = CFFN(6, ladders=2, depth=3, form="diag", eps=0.1, dtype="float64")
        return with_weights(layer, weights)(x)

    compare("cffn", run, EXACT)
