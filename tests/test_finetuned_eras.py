"""Fine-tuned checkpoints of every era: decoded as they are, reduced, and started from."""

import pytest
import torch
from conftest import LETTERS, batch_of, build_model, generate, write_dictionary
from fairseq import checkpoint_utils
from test_end_to_end import check_results

transformers = pytest.importorskip("transformers")
from public_checkpoints import FINETUNED, FORMS, reference, write_finetuned  # noqa: E402

NUM_LABELS = 4 + len(LETTERS)


@pytest.fixture(scope="module", params=list(FINETUNED))
def finetuned(request, tmp_path_factory):
    """(path, Hugging Face's encoder, the head's weight, whether waveforms are normalised)"""
    path = tmp_path_factory.mktemp("finetuned") / "public.pt"
    form, _ = FINETUNED[request.param]
    model = reference(form, seed=1)
    dictionary = write_dictionary(path.parent)
    head = write_finetuned(path, request.param, model, NUM_LABELS, dictionary)
    return path, model, head, FORMS[form][2]


def test_it_is_decoded_without_its_pretrained_file(finetuned, corpus, tmp_path):
    path, _, _, _ = finetuned
    generate(corpus, path, tmp_path)
    check_results(tmp_path, corpus)


@torch.no_grad()
def test_its_logits_are_those_of_hugging_face_with_that_head(finetuned, corpus):
    path, theirs, head, _ = finetuned
    source = batch_of([9000])["source"]
    expected = theirs(source).last_hidden_state @ head.T
    for overrides in ({}, {"keep_layers": "all"}):  # stock's model, and ours
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], {"data": str(corpus), **overrides}
        )
        assert type(model).__name__ == ("SpeedupCtc" if overrides else "Wav2VecCtc")
        logits = model.eval()(source=source, padding_mask=None)["encoder_out"]
        torch.testing.assert_close(logits[:, 0], expected[0], atol=1e-3, rtol=1e-3)


def test_it_is_a_starting_point_and_keeps_its_head_where_the_labels_agree(finetuned):
    path, theirs, head, normalize = finetuned
    options = {"downsample": "conv", "downsample_factor": 2.0}
    model = build_model(path, normalize=normalize, labels=LETTERS, **options)
    assert torch.equal(model.w2v_encoder.proj.weight, head)
    layer, their_layer = (
        encoder.layers[2].final_layer_norm.weight
        for encoder in (model.w2v_encoder.w2v_model.encoder, theirs.encoder)
    )
    assert torch.equal(layer, their_layer)
    other = build_model(path, normalize=normalize, labels=[*LETTERS[:-1], "Q"], **options)
    assert other.w2v_encoder.proj.weight.shape == head.shape
    assert not torch.equal(other.w2v_encoder.proj.weight, head)
