"""Linear layers in C give what torch's operators do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.int8 import LOWEST_GELU, NarrowProduct, Product, VnniProduct
from fairseq_speedup.inference.kernels.linears import (
    LinearInC,
    bytes_multiplier,
    floats_multiplier,
)

# rows, inputs and outputs: of one tile, of parts of vectors and groups, of several parts of groups,
# of several blocks of rows
SIZES = [(1, 1, 1), (7, 5, 3), (6, 64, 64), (13, 66, 100), (50, 1023, 17), (40, 3100, 33)]
SIZES += [(500, 3200, 80), (1200, 129, 200)]
PRODUCTS = [VnniProduct, NarrowProduct]


@pytest.fixture(params=[512, 256], autouse=True)
def bits(request, monkeypatch):
    """Of vectors, as on a CPU that has no wider ones."""
    widest = floats_multiplier()
    monkeypatch.setattr(kernels, "MOST_BITS", request.param)
    if request.param == 256 and floats_multiplier() == widest is not None:
        pytest.skip("tried as the widest of this CPU")


@pytest.fixture(params=PRODUCTS)
def product(request):
    if bytes_multiplier(request.param.NARROW) is None:
        pytest.skip("no such compiled product")
    return request.param


needs_narrow = pytest.mark.skipif(not NarrowProduct.runs_here(), reason="no narrow product here")
needs_floats = pytest.mark.skipif(not floats_multiplier(), reason="no compiled product of fp32")


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class PlainProduct(Product):
    """By torch's operators, in whole numbers."""

    DTYPE = torch.uint8

    def _prepare(self, weight, scales, zero_point):
        self.weight, self.scales, self.zero_point = weight, scales, zero_point

    def _multiplied(self, levels):
        sums = (levels.long() - self.zero_point) @ self.weight.long().T
        return sums.float() * self.scales


def in_torch(product):
    """A product of the same levels and weights."""

    class Plain(PlainProduct):
        LEVELS, LARGEST, scales_of = product.LEVELS, product.LARGEST, product.scales_of

    return Plain


def norm_of(width):
    norm = nn.LayerNorm(width)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def frames_of(num_rows, width, of_gelus, levels):
    """Numbers that are levels, so that no rounding differs."""
    if of_gelus:
        frames = torch.randint(0, levels + 1, (num_rows, width))
        frames[:, 0] = levels
        return frames * 0.01 + LOWEST_GELU
    frames = torch.randint(-(levels // 2), levels // 2 + 1, (num_rows, width)).float()
    frames[:, 0] = levels // 2
    return frames


def what_follows(width, num_rows):
    """By name, what is asked of a product of frames."""
    norm, residual = norm_of(width), torch.randn(num_rows, width) * 100
    return {
        "alone": lambda product, frames: product.outputs(frames),
        "gelu": lambda product, frames: product.outputs(frames, gelu=True),
        "norm": lambda product, frames: product.outputs(frames, norm),
        "norm, gelu": lambda product, frames: product.outputs(frames, norm, gelu=True),
        "added": lambda product, frames: product.added(frames, residual),
        "added, norm": lambda product, frames: torch.cat(
            product.added_and_normalised(frames, residual, norm)
        ),
    }


class Plain:
    """A linear layer of fp32 by torch's operators."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def outputs(self, frames, norm=None, gelu=False):
        outputs = F.linear(frames, self.weight, self.bias)
        outputs = outputs if norm is None else norm(outputs)
        return F.gelu(outputs) if gelu else outputs

    def added(self, frames, residual):
        return residual + self.outputs(frames)

    def added_and_normalised(self, frames, residual, norm):
        added = self.added(frames, residual)
        return added, norm(added)


@needs_floats
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fp32_is_torchs(size):
    num_rows, inputs, outputs = size
    weight, bias = torch.randn(outputs, inputs) * inputs**-0.5, torch.randn(outputs)
    ours, theirs = LinearInC.of_floats(weight, bias), Plain(weight, bias)
    frames = torch.randn(num_rows, inputs)
    for name, call in what_follows(outputs, num_rows).items():
        expected = call(theirs, frames)
        assert_close(call(ours, frames), expected, atol=2e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("of_gelus", [False, True])
def test_bytes_are_torchs(product, size, of_gelus):
    num_rows, inputs, outputs = size
    weight, bias = torch.randn(outputs, inputs) * inputs**-0.5, torch.randn(outputs)
    ours, theirs = (each(weight, bias, of_gelus) for each in (product, in_torch(product)))
    frames = frames_of(num_rows, inputs, of_gelus, product.LEVELS)
    scale = theirs.outputs(frames).abs().max().item()
    for name, call in what_follows(outputs, num_rows).items():
        expected = call(theirs, frames)
        assert_close(call(ours, frames), expected, atol=1e-5 * scale, rtol=1e-4, msg=name)


@pytest.mark.parametrize("of_gelus", [False, True])
@pytest.mark.parametrize("spread", ["alike", "normal", "far apart"])
def test_the_largest_sums_that_there_can_be_fit(product, spread, of_gelus):
    """Every input at that end of its levels that makes an output's sum the largest, or least."""
    weight = torch.randn(48, 203)
    weight = {"alike": weight.sign(), "normal": weight, "far apart": weight**5}[spread]
    weight[0], weight[1] = 1.0, -1.0  # all on one side
    ours, theirs = (
        each(weight, torch.zeros(48), of_gelus) for each in (product, in_torch(product))
    )
    frames = torch.cat([weight.sign(), -weight.sign()])
    if of_gelus:
        frames = frames.clamp(min=0) + LOWEST_GELU
    expected = theirs.outputs(frames)
    assert_close(ours.outputs(frames), expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


@needs_narrow
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_no_four_narrow_weights_add_up_to_more_than_fits(spread):
    """And hardly any output has coarser weights than that takes."""
    weight = torch.randn(300, 90) * torch.randn(300, 90).abs() ** spread
    levels = (weight / NarrowProduct.scales_of(weight)[:, None]).round()
    padded = F.pad(levels, (0, 6)).view(300, 12, 8)
    fours = padded[..., [[0, 1, 4, 5], [2, 3, 6, 7]]]
    sums = torch.stack([fours.clamp(min=0).sum(-1), (-fours).clamp(min=0).sum(-1)])
    largest = sums.amax(dim=(0, 2, 3))
    assert largest.max() * NarrowProduct.LEVELS < 1 << 15 and levels.abs().max() <= 127
    finest = (largest >= 120) | (levels.abs().amax(dim=1) >= 124)
    assert finest.float().mean() > 0.99


@needs_narrow
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_spoils_the_scale_of_no_other_output(bad):
    weight = torch.randn(3, 50)
    spoilt = weight.clone()
    spoilt[1, 7] = bad
    found, expected = NarrowProduct.scales_of(spoilt), NarrowProduct.scales_of(weight)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("kind", PRODUCTS)
def test_an_output_of_large_weights_takes_nothing_from_the_others(kind):
    if kind.NARROW and not kind.runs_here():
        pytest.skip("scales that are found in C")
    weight, frames = torch.randn(6, 64), torch.randn(20, 64)
    weight[3] *= 1000
    found = in_torch(kind)(weight, torch.zeros(6), of_gelus=False).outputs(frames)
    expected = F.linear(frames, weight)
    assert ((found - expected).norm(dim=0) < 0.1 * expected.norm(dim=0)).all()


@pytest.mark.parametrize("width", [1, 63, 256])
def test_the_levels_of_a_gelu_go_on_as_they_are(product, width):
    first, second = torch.randn(width, 40) / 6, torch.randn(30, width) / width**0.5
    frames = frames_of(21, 40, of_gelus=False, levels=product.LEVELS) / 40
    results = []
    for each in (product, in_torch(product)):
        one = each(first, torch.zeros(width), of_gelus=False)
        two = each(second, torch.zeros(30), of_gelus=True)
        levels = one.gelu_to_levels(frames, two)
        assert levels.spans.shape == (21,)
        results.append((levels, two.outputs(levels)))
    (ours, our_outputs), (theirs, their_outputs) = results
    # another order of operations may round another way
    assert (ours.levels[:21].int() - theirs.levels[:21].int()).abs().max() <= 1
    assert_close(our_outputs, their_outputs, atol=0.02, rtol=0)


def products(inputs, outputs):
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    if floats_multiplier():
        yield LinearInC.of_floats(weight, bias)
    for product in PRODUCTS:
        if bytes_multiplier(product.NARROW):
            yield product(weight, bias, of_gelus=False)


def test_frames_may_lie_in_memory_in_any_way():
    frames = torch.randn(1000)
    overlapping = frames.as_strided((20, 96), (32, 1))
    turned = torch.randn(96, 20).T
    batch = torch.randn(5, 4, 96)
    for product in products(96, 40):
        for rows in (overlapping, turned):
            assert torch.equal(product.outputs(rows), product.outputs(rows.contiguous()))
        apart = torch.stack([product.outputs(each.contiguous()) for each in batch.unbind(1)], dim=1)
        assert_close(product.outputs(batch), apart, atol=1e-5, rtol=1e-5)
        assert torch.equal(product.outputs(batch.transpose(0, 1)).transpose(0, 1), apart)
        residual = torch.randn(4, 5, 40).transpose(0, 1)
        assert_close(product.added(batch, residual), residual + apart, atol=1e-5, rtol=1e-5)
        assert_close(product.outputs(overlapping.double()), product.outputs(overlapping))


def test_no_row_depends_on_what_others_there_are():
    frames = torch.randn(300, 80)
    for product in products(80, 50):
        together = product.outputs(frames)
        for first, last in ((0, 1), (7, 20), (100, 300)):
            assert torch.equal(product.outputs(frames[first:last]), together[first:last])


def test_of_no_frames_there_are_no_outputs():
    for product in products(80, 50):
        assert product.outputs(torch.randn(0, 80)).shape == (0, 50)
        assert product.outputs(torch.randn(0, 2, 80), gelu=True).shape == (0, 2, 50)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_number_stays_none(number):
    """The frame that has it gives none, others what they gave."""
    frames = torch.randn(9, 40)
    for product in products(40, 24):
        followed = what_follows(24, 9)
        if not isinstance(product, LinearInC):
            second = type(product)(torch.randn(7, 24), torch.zeros(7), of_gelus=True)
            followed["levels of the GELU"] = lambda product, frames, second=second: second.outputs(
                product.gelu_to_levels(frames, second)
            )
        for name, call in followed.items():
            expected, others = call(product, frames), torch.arange(len(frames)) != 4
            broken = frames.clone()
            broken[4, 11] = number
            given = call(product, broken)
            for one, other in zip(given.split(9), expected.split(9), strict=True):
                assert torch.equal(one[others], other[others]), name
                if name != "gelu" or number > 0 or number != number:  # GELU(-inf) is 0
                    assert not one[4].isfinite().all(), name


def test_what_does_not_fit_is_refused():
    for product in products(80, 8):
        for frames in (torch.randn(10, 40), torch.randn(10, 160), torch.randn(3, 7)):
            with pytest.raises(ValueError, match="channels, 80 needed"):
                product.outputs(frames)
        frames = torch.randn(10, 80)
        for residual in (torch.randn(1, 8), torch.randn(8, 10), torch.randn(11, 8)):
            with pytest.raises(ValueError, match="a residual of"):
                product.added(frames, residual)
            with pytest.raises(ValueError, match="a residual of"):
                product.added_and_normalised(frames, residual, norm_of(8))
