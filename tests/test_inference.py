"""The inference form: the model's numbers, whatever is reduced, alone and in a batch."""

import pytest
import torch
from helpers.models import FRONT_ENDS, batch_of, build_model, write_four_layers
from helpers.reductions import REDUCTIONS, name_of

pytest.importorskip("transformers")
from public_checkpoints import FORMS, reference, write_form

from fairseq_speedup.frontend.fbank import WINDOW_SAMPLES, fourier_matrix
from fairseq_speedup.inference import kernels, positions, to_inference_form
from fairseq_speedup.inference import linear as linears
from fairseq_speedup.inference.cnn import PIECE_FRAMES
from fairseq_speedup.inference.fbank import PIECE_WINDOWS, FourierHalves
from fairseq_speedup.inference.int8 import (
    LOWEST_GELU,
    PRODUCTS,
    CompiledProduct,
    FbgemmProduct,
    Int8Linear,
    NarrowProduct,
    OneDnnProduct,
    VnniProduct,
    multiplies_int8,
    product_here,
)
from fairseq_speedup.inference.kernels.rows import LevelRows
from fairseq_speedup.inference.linear import LINEARS, Fp32Linear
from fairseq_speedup.inference.positions import BandedConv1d, FourierConv1d, Int8Conv1d
from fairseq_speedup.macs import MacCounter

needs_int8 = pytest.mark.skipif(product_here() is None, reason="this CPU cannot multiply int8")
INT8 = pytest.param("int8", marks=needs_int8)
COUNTS = [9000, 6000, 7777]
WEIGHTS = {"fp32": 1e-4, "bf16": 0.15, "int8": 0.5}  # of logits between -2 and 2


@pytest.fixture(scope="module", params=FRONT_ENDS)
def four_layers(tmp_path_factory, request):
    return write_four_layers(tmp_path_factory.mktemp(request.param) / "four.pt", request.param)


def pair(path, name: str, **options):
    """A model, and the same in an inference form."""
    model, form = (build_model(path, **options).eval() for _ in range(2))
    assert to_inference_form(form, name)["form"] == name
    return model, form


@torch.no_grad()
def run(model, net_input):
    output = model(**net_input)
    return model.get_logits(output), output


def valid(logits, output):
    """The logits of each utterance, without padding."""
    mask = output["padding_mask"]
    lengths = (~mask).sum(dim=1) if mask is not None else [len(logits)] * logits.size(1)
    return [logits[:length, index] for index, length in enumerate(lengths)]


@pytest.mark.parametrize("options", [{}, *REDUCTIONS.values()], ids=name_of)
def test_the_fp32_form_gives_the_models_numbers(four_layers, options):
    model, form = pair(four_layers, "fp32", **options)
    for net_input in (batch_of(COUNTS), batch_of([7777])):
        for ours, theirs in zip(
            valid(*run(form, net_input)), valid(*run(model, net_input)), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=WEIGHTS["fp32"], rtol=0)


@pytest.mark.parametrize("form", ["fp32", INT8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_model_of_another_type_is_of_fp32_in_a_form(four_layers, form, dtype):
    model = build_model(four_layers).to(dtype).float()
    other = build_model(four_layers).to(dtype)
    for each in (model, other):
        to_inference_form(each, form)
    net_input = batch_of(COUNTS)
    assert torch.equal(run(other, net_input)[0], run(model, net_input)[0])


@pytest.mark.parametrize("form", ["bf16", INT8])
@pytest.mark.parametrize("name", [None, "conv", "conv_pool", "fbank", "upsample"])
def test_other_forms_stay_near_and_give_the_same_in_any_batch(four_layers, form, name):
    model, near = pair(four_layers, form, **REDUCTIONS.get(name, {}))
    net_input = batch_of(COUNTS)
    together = valid(*run(near, net_input))
    for ours, theirs in zip(together, valid(*run(model, net_input)), strict=True):
        assert 0 < (ours - theirs).abs().max() < WEIGHTS[form]
    for index, count in enumerate(COUNTS):
        alone = {"source": net_input["source"][index : index + 1, :count], "padding_mask": None}
        (ours,) = valid(*run(near, alone))
        assert (ours - together[index]).abs().max() < WEIGHTS[form] / 4


def test_stock_padding_stays_stock(four_layers):
    model, form = pair(four_layers, "fp32", padding="stock")
    net_input = batch_of(COUNTS)
    for ours, theirs in zip(
        valid(*run(form, net_input)), valid(*run(model, net_input)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_long_utterances_are_convolved_in_pieces(four_layers):
    model, form = pair(four_layers, "fp32")
    cnn = model.w2v_encoder.front_end
    count = cnn.needed_samples(2 * PIECE_FRAMES + 7) + 3
    net_input = batch_of([count])
    torch.testing.assert_close(run(form, net_input)[0], run(model, net_input)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("frame_ms", [20, 40])
@pytest.mark.parametrize("counts", [[4 * PIECE_WINDOWS * 160 + 77, 9000], [400]], ids=str)
def test_filterbanks_of_a_form(four_layers, frame_ms, counts):
    """Pieces, padding, and the shortest that there is."""
    model, form = pair(four_layers, "fp32", frontend="fbank", frontend_frame_ms=frame_ms)
    for each in (model, form):
        log_mel = each.w2v_encoder.fbank.log_mel
        log_mel.mean.fill_(-3.0)
        log_mel.square.fill_(11.0)
    net_input = batch_of(counts)
    for ours, theirs in zip(
        valid(*run(form, net_input)), valid(*run(model, net_input)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_halves_of_the_fourier_transform_give_its_power():
    windows = torch.randn(7, WINDOW_SAMPLES)
    real, imaginary = (windows @ fourier_matrix().float()).chunk(2, dim=1)
    power = real.square() + imaginary.square()
    torch.testing.assert_close(FourierHalves()(windows), power, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["fp32", INT8])
@pytest.mark.parametrize("frontend", ["cnn", "fbank"])
def test_costs_are_counted_as_before(four_layers, name, frontend):
    model, form = pair(four_layers, name, frame_pool=2, keep_layers="3", frontend=frontend)
    # 48 frames, 24 after pooling: of an odd number fairseq computes one more
    counts = [MacCounter(each).count([15680]).sum() for each in (model, form)]
    assert counts[0] == counts[1]


@needs_int8
@pytest.mark.parametrize("of_gelus", [False, True])
def test_a_scale_for_each_frame_leaves_the_others_alone(of_gelus):
    linear = Int8Linear(torch.nn.Linear(64, 32), of_gelus)
    frames = torch.randn(5, 64).clamp(min=LOWEST_GELU)
    expected = linear(frames)[:4]
    frames[4] *= -1000 * frames[4].sign()
    assert torch.equal(linear(frames)[:4], expected)


@needs_int8
def test_int8_errs_by_less_than_its_steps():
    plain = torch.nn.Linear(64, 32)
    frames = torch.randn(50, 64)
    step = frames.abs().amax(dim=1) / (product_here().LEVELS // 2) * plain.weight.abs().max() * 64
    error = (Int8Linear(plain)(frames) - plain(frames)).abs().amax(dim=1)
    assert (error < step).all() and error.max() > 0


def test_with_avx2_alone_layers_that_fp32_is_faster_at_stay_in_fp32(monkeypatch):
    if not FbgemmProduct.runs_here():
        pytest.skip("this torch has no FBGEMM")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(kernels, "LIBRARY", None)
    monkeypatch.setattr(FbgemmProduct, "LEAST_WEIGHTS", 2048)
    small, large = torch.nn.Linear(64, 31), torch.nn.Linear(64, 32)
    assert type(Int8Linear.of(small)) is type(Fp32Linear.of(small))
    assert type(Int8Linear.of(large, of_gelus=True)) is Int8Linear


@needs_int8
def test_what_a_gelu_gave_has_steps_half_as_long():
    plain = torch.nn.Linear(256, 64)
    plain.weight.data.sign_()  # so that rounding the weights costs nothing
    frames = torch.nn.functional.gelu(torch.randn(50, 256))
    errors = [
        (Int8Linear(plain, of_gelus)(frames) - plain(frames)).square().mean().sqrt()
        for of_gelus in (False, True)
    ]
    assert 0.25 * errors[0] < errors[1] < 0.75 * errors[0]


@needs_int8
@pytest.mark.parametrize("of_gelus", [False, True])
@pytest.mark.parametrize("value", [LOWEST_GELU, 0.0, 1e-30, 3.0])
def test_rows_of_one_value_are_as_exact_as_others(of_gelus, value):
    plain = torch.nn.Linear(64, 32)
    frames = torch.full((3, 64), value)
    expected = plain(frames)
    torch.testing.assert_close(Int8Linear(plain, of_gelus)(frames), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("product", [each for each in PRODUCTS if each.runs_here()])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("of_gelus", [False, True])
@pytest.mark.parametrize("bits", [512, 256])
def test_sums_of_the_largest_levels_and_weights_are_exact(
    monkeypatch, product, sign, of_gelus, bits
):
    monkeypatch.setattr(kernels, "MOST_BITS", bits)
    if not product.runs_here():
        pytest.skip("of wider vectors alone")
    largest, more = product.LARGEST, 0
    if product is NarrowProduct:
        largest, more = divmod(product.LARGEST_SUM, 4)
    weight = torch.full((32, 3072), sign * largest)
    weight[16:] = torch.randint(-largest, largest + 1, (16, 3072))
    weight[16:, :8] = largest
    weight[:, 0] += weight[:, 0].sign() * more  # scales are 1
    levels = torch.randint(0, product.LEVELS + 1, (5, 3072))
    levels[0] = product.LEVELS
    zero_point = 0 if of_gelus else (product.LEVELS + 1) // 2
    bias = -LOWEST_GELU * weight.float().sum(dim=1) * of_gelus  # it takes itself away
    made = product(weight.float(), bias, of_gelus)
    inputs = levels if torch.uint8 == product.DTYPE else levels - zero_point
    inputs = inputs.to(product.DTYPE)
    if issubclass(product, CompiledProduct):
        spans = torch.full((5,), float(made.levels.count))
        sums = made.outputs(LevelRows(inputs, spans))
    else:
        sums = made._multiplied(inputs)
    expected = ((levels - zero_point) @ weight.long().T).float()  # once rounded
    assert torch.equal(sums, expected)


def test_every_cpu_has_the_product_it_is_fastest_with(monkeypatch):
    def found(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        return product_here()

    engine = torch.backends.quantized.engine
    if not torch.backends.mkldnn.is_available() or engine not in ("x86", "fbgemm"):
        pytest.skip("this torch has neither oneDNN nor FBGEMM")
    alone = {"avx2": True}
    if kernels.LIBRARY is not None:
        assert found(**alone) is found(**alone, avx512_f=True) is NarrowProduct
        monkeypatch.setattr(kernels, "LIBRARY", None)
    assert found(**alone) is found(**alone, avx512_f=True) is FbgemmProduct
    assert found(avx2=True, avx_vnni=True) is found(avx2=True, amx_int8=True) is OneDnnProduct
    assert found(sse4_2=True) is found() is None


@needs_int8
def test_attention_is_in_the_type_that_its_product_wants(monkeypatch):
    def found(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        return Int8Linear(torch.nn.Linear(64, 32))

    wide = {"avx2": True, "avx512_f": True, "avx512_vnni": True, "avx512_bf16": True}
    amx = {**wide, "amx_int8": True, "amx_bf16": True}
    if multiplies_int8():
        assert type(found(**amx).product) is OneDnnProduct
        assert found(**amx).dtype is torch.bfloat16
        assert found(**{**amx, "amx_bf16": False, "avx512_bf16": False}).dtype is torch.float32
    if type(found(**wide).product) is VnniProduct:  # of Cooper Lake and Zen 4
        assert found(**wide).dtype is torch.float32


@pytest.mark.skipif(not VnniProduct.runs_here(), reason="of CPUs with VNNI")
def test_the_report_says_what_is_in_c(four_layers, monkeypatch):
    wide = {"avx2": True, "avx512_f": True, "avx512_vnni": True, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: wide)
    for form, whole, attention in (("int8", 4, 4), ("fp32", 4, 4), ("bf16", 0, 0)):
        model = build_model(four_layers)
        report = to_inference_form(model, form)
        found = report["layers_in_c"], report["attention_in_c"]
        assert found == (f"{whole} of 4", f"{attention} of 4")
        layers = model.w2v_encoder.w2v_model.encoder.layers
        assert sum(layer.in_c is not None for layer in layers) == whole


def test_the_first_convolution_is_made_ready_once(four_layers):
    _, form = pair(four_layers, "fp32")
    cnn = form.w2v_encoder.w2v_model.feature_extractor
    found = [cnn._first_weights(torch.randn(9000)) for _ in range(2)]
    same = [one is other for one, other in zip(*found, strict=True)]
    assert same == [cnn.group_norm is None] * 2


@pytest.mark.parametrize("family", list(FORMS))
@pytest.mark.parametrize("form", ["fp32", INT8])
def test_every_family_has_one(tmp_path, family, form):
    write_form(tmp_path / "public.pt", family, reference(family))
    normalize = FORMS[family][2]
    model, near = pair(tmp_path / "public.pt", form, normalize=normalize, keep_layers="2")
    net_input = batch_of(COUNTS)
    for ours, theirs in zip(
        valid(*run(near, net_input)), valid(*run(model, net_input)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=WEIGHTS[form], rtol=0)
    counts = [MacCounter(each).count([15680]).sum() for each in (model, near)]
    assert counts[0] == counts[1]


def test_an_unknown_form_is_refused_in_words(four_layers):
    model = build_model(four_layers)
    with pytest.raises(ValueError, match="--inference int4 is unknown; valid values: auto, none"):
        to_inference_form(model, "int4")
    with pytest.raises(ValueError, match="fp16 is for GPUs"):
        to_inference_form(model, "fp16")


def test_a_form_that_is_refused_changes_nothing(four_layers):
    model = build_model(four_layers, prune_target=0.5)
    with pytest.raises(ValueError, match="fp16 is for GPUs"):
        to_inference_form(model, "fp16")
    assert model.w2v_encoder.pruning is not None


def test_int8_is_refused_where_nothing_multiplies_it(four_layers, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx": True})
    with pytest.raises(ValueError, match=r"int8 needs a CPU that multiplies int8.*use fp32"):
        to_inference_form(build_model(four_layers), "int8")


@pytest.mark.parametrize("fused", [True, False])
def test_gelu_is_the_same_in_the_product_and_after_it(monkeypatch, fused):
    monkeypatch.setattr(linears, "cpu_has", lambda *names: True)  # weights are packed
    monkeypatch.setattr(linears, "fuses_gelu", lambda: fused)
    plain, frames = torch.nn.Linear(64, 32), torch.randn(7, 64)
    expected = torch.nn.functional.gelu(plain(frames))
    torch.testing.assert_close(Fp32Linear(plain).gelu(frames), expected, atol=1e-6, rtol=0)


KERNELS = [(128, 16, 1), (128, 16, 3), (19, 16, 1), (3, 2, 2), (1, 1, 1)]


@pytest.mark.parametrize("kind", [FourierConv1d, BandedConv1d])
@pytest.mark.parametrize("kernel_size, groups, stride", KERNELS)
@torch.no_grad()
def test_a_long_convolution_is_the_convolution_at_every_length(kernel_size, groups, stride, kind):
    conv = torch.nn.Conv1d(
        32, 64, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups
    )
    made = kind(32, 64, kernel_size, padding=kernel_size // 2, groups=groups)
    made.load_state_dict(conv.state_dict())
    kind.convert(made, torch.float32)
    made.stride = (stride,)  # as pooled frames choose it, after
    for num_frames in (1, 2, 3, 20, 127, 128, 129, 130, 258, 259, 600):
        frames = torch.randn(2, 32, num_frames)
        torch.testing.assert_close(made(frames), conv(frames), atol=1e-5, rtol=0)


@pytest.mark.parametrize("product", [VnniProduct, NarrowProduct])
@pytest.mark.parametrize("kernel_size, groups, stride", KERNELS)
@pytest.mark.parametrize("num_threads", [1, 2])
@torch.no_grad()
def test_a_long_convolution_in_int8_is_the_convolution_of_its_levels(
    monkeypatch, product, kernel_size, groups, stride, num_threads
):
    if not product.runs_here():
        pytest.skip("not of this CPU")
    monkeypatch.setattr(positions, "compiled_product_here", lambda: product)
    conv = torch.nn.Conv1d(
        32, 64, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups
    )
    windows = torch.randint(-37, 38, (64, kernel_size, 32 // groups))
    windows.flatten(1)[:, :8] = 8
    windows[:, 0, 0] = 127  # scales are 1, of sums of four as well
    conv.weight.copy_(windows.transpose(1, 2))
    made = torch.nn.Conv1d(32, 64, kernel_size, padding=kernel_size // 2, groups=groups)
    made.load_state_dict(conv.state_dict())
    Int8Conv1d.convert(made, torch.float32)
    made.stride = (stride,)
    torch.set_num_threads(num_threads)
    for num_frames in (1, 3, 20, 128, 129, 600):
        largest = product.LEVELS // 2
        frames = torch.randint(-largest, largest + 1, (2, 32, num_frames)).float()
        frames[:, :: 32 // groups, num_frames // 2] = largest
        frames[1, : 32 // groups] *= 0.01  # a group of one utterance has a scale of its own
        given, expected = made(frames), conv(frames)
        torch.testing.assert_close(given, expected, atol=0.01, rtol=1e-5)
        frames[0] *= 100
        torch.testing.assert_close(made(frames)[1], given[1], atol=0, rtol=0)
    torch.set_num_threads(1)


@pytest.mark.parametrize("form", ["fp32", "bf16", INT8])
def test_no_length_depends_on_which_convolutions_a_library_has_tuned(four_layers, form):
    """oneDNN falls back to its reference code, 50 times slower, where an utterance has fewer frames
    than a grouped kernel."""
    _, model = pair(four_layers, form)
    for count in (4000, 16000, 50000):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            run(model, batch_of([count]))
        assert not [each.key for each in profiled.key_averages() if "conv" in each.key]


def test_a_form_registered_later_is_known(four_layers, monkeypatch):
    monkeypatch.setitem(LINEARS, "plain", LINEARS["fp32"])
    model, form = pair(four_layers, "plain")
    net_input = batch_of([7777])
    torch.testing.assert_close(run(form, net_input)[0], run(model, net_input)[0])


@pytest.mark.parametrize(
    "name, threads, packs", [("avx2", 1, False), ("avx2", 2, True), ("avx512_f", 1, True)]
)
def test_weights_in_fp32_are_packed_where_that_pays(name, threads, packs, monkeypatch):
    monkeypatch.setattr(linears, "cpu_has", lambda *names: name in names)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    linear = torch.nn.Linear(8, 6)
    assert linears.Fp32Linear(linear).packed == (name == "avx512_f")
    monkeypatch.setattr(linears, "LARGE", 48)
    made = linears.Fp32Linear(linear)
    assert made.packed == packs
    assert not linears.Bf16Linear(linear).packed
    with torch.no_grad():
        for shape in ((3, 8), (1, 8), (16, 8), (7, 2, 8), (300, 1, 8), (0, 8)):
            frames = torch.randn(shape)
            torch.testing.assert_close(made(frames), linear(frames))
            gelu = torch.nn.functional.gelu(linear(frames))
            torch.testing.assert_close(made.gelu(frames), gelu)


def test_numbers_of_rows_are_shared_by_a_sixteenth_more_at_most():
    for num_rows in range(5000):
        more = linears.shared_rows(num_rows) - num_rows
        assert 0 <= more < max(16, num_rows / 16)
    assert len({linears.shared_rows(n) for n in range(1, 5000)}) < 100
