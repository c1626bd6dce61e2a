"""Without padding, and with a last layer for [CLS] alone, the encoder is the plain Hugging Face
model: exact in float64, as autocast rounds in bf16.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.deberta.attention import attend, packing_of
from embedcache.encoder.deberta.packed import is_packable
from embedcache.encoder.deberta.projection import CastWeights, project
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.prefix import base_of
from embedcache.encoder.tokens import TokenTable


def table(lengths: list[int]) -> TokenTable:
    generator = torch.Generator().manual_seed(1)
    return TokenTable(
        torch.randint(5, 260, (sum(lengths),), generator=generator),
        torch.tensor([0, *lengths]).cumsum(0),
    )


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> StringEncoder:
    made = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    torch.manual_seed(0)
    add_lora(
        made,
        LoraConfig(
            r=4, dropout=0.0, target_modules=("query_proj", "key_proj", "value_proj", "dense")
        ),
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "embeddings" not in name:
                # biases of the stand-in are zero
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made.train()


def outcome(
    encoder: StringEncoder, tokens: TokenTable, pad_to: int | None
) -> dict[str, torch.Tensor]:
    """Return vectors and all gradients of a linear readout.

    The readout's own gradient does not depend on the vectors.
    """
    encoder.zero_grad()
    vectors = encoder(tokens, pad_to)
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    trained = {name: each for name, each in encoder.named_parameters() if each.requires_grad}
    gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
    return {"vectors": vectors.detach(), **gradients}


@examples(cost=4)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    pooling=st.sampled_from(["mean", "cls"]),
)
def test_float64_vectors_and_gradients_are_those_of_the_plain_model(
    encoder: StringEncoder, lengths: list[int], pooling: str
) -> None:
    assert is_packable(base_of(encoder.model))
    encoder.pooling = pooling
    encoder.double()
    tokens = table(lengths)
    wanted, found = outcome(encoder, tokens, max(lengths) + 3), outcome(encoder, tokens, None)
    encoder.float()
    # vectors are handed on in fp32
    torch.testing.assert_close(found.pop("vectors"), wanted.pop("vectors"), rtol=1e-6, atol=1e-7)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    assert largest > 0
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= 1e-10 * largest, name


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_fp32_and_bf16_round_no_worse_than_the_plain_model(
    tiny_encoder_folder: Path, pooling: str
) -> None:
    squares = {
        (autocast, pad_to): torch.zeros(2, dtype=torch.float64)
        for autocast in (False, True)
        for pad_to in (None, 30)
    }
    for seed in range(6):  # one draw's rounding errors differ by a factor either way
        encoder = load_encoder(EncoderConfig(source=str(tiny_encoder_folder), pooling=pooling))
        torch.manual_seed(seed)
        add_lora(encoder, LoraConfig(r=4, dropout=0.0))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        tokens = table([3, 17, 9, 30, 17, 5])
        exact = outcome(encoder.double(), tokens, 30)
        for (autocast, pad_to), square in squares.items():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                found = outcome(encoder.float(), tokens, pad_to)
            errors = {
                name: float((found[name] - exact[name]).double().norm() / exact[name].norm()) ** 2
                for name in exact
            }
            square += torch.tensor([errors.pop("vectors"), sum(errors.values()) / len(errors)])
    for autocast in (False, True):
        # twice the error of the plain model
        assert (squares[autocast, None] <= 4 * squares[autocast, 30]).all(), squares
        assert squares[autocast, 30].max() < (0.1 if autocast else 1e-8)


def test_the_last_layer_is_run_for_cls_alone(encoder: StringEncoder) -> None:
    rows: dict[str, list[int]] = {"mean": [], "cls": []}
    layers = base_of(encoder.model).encoder.layer
    for pooling, seen in rows.items():
        encoder.pooling = pooling
        hooks = [
            layer.output.LayerNorm.register_forward_hook(
                lambda _, inputs, __, seen=seen: seen.append(len(inputs[0]))
            )
            for layer in layers
        ]
        encoder(table([4, 9, 9, 13]))
        for hook in hooks:
            hook.remove()
    assert rows == {"mean": [35, 35], "cls": [35, 4]}


def test_a_cast_stays_where_it_is_though_another_dtype_is_asked_for() -> None:
    # a CUDA graph reads it by its address
    casts, weights = CastWeights(), [torch.randn(4, 3), torch.randn(5, 3)]
    low = casts(weights, torch.bfloat16)
    assert casts(weights, torch.float32).dtype == torch.float32
    assert casts(weights, torch.bfloat16) is low


def test_cast_weights_are_what_autocast_gives_bit_for_bit_and_follow_the_originals(
    encoder: StringEncoder,
) -> None:
    casts, x = CastWeights(), torch.randn(50, encoder.width)
    base = load_encoder_layers(encoder)
    names = [name for name, _ in encoder.named_parameters()]
    size = sum(p.numel() for p in encoder.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            assert torch.equal(
                project(casts, x, base), torch.cat([linear(x) for linear in base], dim=1)
            )
        copies = casts.num_bytes
        assert copies == 2 * sum(
            parameter.numel() for linear in base for parameter in linear.parameters()
        )
        with torch.no_grad():
            base[1].weight.mul_(2)
        assert torch.equal(
            project(casts, x, base), torch.cat([linear(x) for linear in base], dim=1)
        )
        with torch.no_grad():
            base[1].weight.div_(2)
    assert casts.num_bytes == copies
    assert [name for name, _ in encoder.named_parameters()] == names
    assert sum(p.numel() for p in encoder.parameters()) == size
    assert torch.equal(project(casts, x, base[:1]), base[0](x))
    trained = torch.nn.Linear(encoder.width, 3)  # not frozen: runs as it is, and gets its gradient
    project(casts, x, [trained]).sum().backward()
    assert trained.weight.grad is not None


def load_encoder_layers(encoder: StringEncoder) -> list[torch.nn.Linear]:
    attention = base_of(encoder.model).encoder.layer[0].attention.self
    return [
        projection.base_layer
        for projection in (attention.query_proj, attention.key_proj, attention.value_proj)
    ]


def test_each_projection_has_a_mask_of_its_own_and_the_gradient_goes_through_it(
    tiny_encoder_folder: Path,
) -> None:
    encoder = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    torch.manual_seed(0)
    add_lora(encoder, LoraConfig(r=encoder.width, alpha=encoder.width, dropout=0.25))
    encoder.train()
    attention = base_of(encoder.model).encoder.layer[0].attention.self
    modules = [attention.query_proj, attention.key_proj, attention.value_proj]
    with torch.no_grad():
        # A and B the identity, the projection itself zero: what comes out is the dropped input
        for module in modules:
            module.base_layer.weight.zero_()
            module.lora_A["default"].weight.copy_(torch.eye(encoder.width))
            module.lora_B["default"].weight.copy_(torch.eye(encoder.width))
    x = (torch.rand(400, encoder.width) + 1).requires_grad_()
    dropped = project(CastWeights(), x, modules)
    kept = [part != 0 for part in dropped.chunk(3, dim=1)]
    for part, keep in zip(dropped.chunk(3, dim=1), kept, strict=True):
        torch.testing.assert_close(part[keep], (x / 0.75)[keep])
        assert abs(float(keep.float().mean()) - 0.75) < 0.02
    assert abs(float((kept[0] & kept[1]).float().mean()) - 0.75**2) < 0.02  # independent
    assert abs(float((kept[1] & kept[2]).float().mean()) - 0.75**2) < 0.02
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, sum(keep.float() for keep in kept) / 0.75)


def test_a_string_that_is_not_finite_spoils_no_other_of_its_group() -> None:
    packing = packing_of(((2, 5, 3),), torch.device("cpu"))
    stacked = torch.randn(10, 3 * 8, generator=torch.Generator().manual_seed(0))
    wanted = attend(None, stacked, packing, 2)
    for start, stop in ((0, 2), (2, 7), (7, 10)):
        spoilt = stacked.clone()
        spoilt[start:stop] = torch.nan
        context = attend(None, spoilt, packing, 2)
        others = torch.tensor([not start <= token < stop for token in range(10)])
        assert torch.equal(context[others], wanted[others])
        assert context[start:stop].isnan().all()


@pytest.mark.parametrize("one_query", [False, True])
def test_attention_has_the_gradient_of_its_own_differences(one_query: bool) -> None:
    torch.manual_seed(0)
    packing = packing_of(((1, 2, 2), (4, 4)), torch.device("cpu"))
    stacked = torch.randn(13, 12 if one_query else 18, dtype=torch.float64, requires_grad=True)
    query = torch.randn(5, 6, dtype=torch.float64, requires_grad=True) if one_query else None
    if query is None:
        assert torch.autograd.gradcheck(lambda both: attend(None, both, packing, 3), (stacked,))
    else:
        assert torch.autograd.gradcheck(
            lambda one, both: attend(one, both, packing, 3), (query, stacked)
        )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("with_states", [False, True])
def test_a_step_never_waits_for_the_device(
    tiny_encoder_folder: Path, pooling: str, with_states: bool
) -> None:
    """On the meta device copies to the host raise, so what runs there asks a GPU for nothing."""
    encoder = load_encoder(EncoderConfig(source=str(tiny_encoder_folder), pooling=pooling))
    add_lora(encoder, LoraConfig(r=4, dropout=0.1, first_layer=int(with_states)))
    tokens = table([4, 9, 30, 9])
    if with_states:
        tokens = replace(tokens, states=encoder.states(tokens, 1))
    encoder.train().to("meta")
    with _NoSync():
        vectors = encoder(tokens.to("meta").take(torch.tensor([2, 0, 1])))
        vectors.sum().backward()
    assert vectors.shape == (3, encoder.width)


class _NoSync(TorchDispatchMode):
    """Refuses, on the device, what can only be answered after waiting for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        on_device = any(isinstance(arg, torch.Tensor) and arg.is_meta for arg in args)
        waits = func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        )
        assert not (on_device and waits), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))
