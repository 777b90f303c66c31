"""The committed table of families has what it must, and its command tells the truth."""

import pytest

pytest.importorskip("transformers")
from families_table import TABLE, TESTS, rows
from public_checkpoints import FINETUNED, FORMS

from fairseq_speedup.pretrained.families import FAMILIES


def cells_of(lines) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


# no model of Hugging Face: what it gives is compared in test_reused_attention.py
NO_PEER = {"armhubert"}


def test_the_table_has_every_family_and_form_and_all_of_them_pass():
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    table = cells_of(lines[2:])
    assert {row[0] for row in table} == set(FAMILIES) - NO_PEER
    assert [row[1] for row in table] == [*FORMS, *FINETUNED]
    for _, _, era, loads, parity, safe in table:
        assert (loads, safe) == ("yes", "yes")
        assert float(parity) < (1e-3 if "pretraining" in era else 1e-4)


def test_what_fails_is_told():
    file, form = TESTS[0], "wavlm base, Microsoft"
    trained = "test_every_family_is_reduced_trained_and_safe_in_a_batch"
    agreed = "test_hidden_states_agree_layer_by_layer"
    told = [("family", "wavlm"), ("era", "flat"), ("safe", True)]
    collected = {
        (file, form): [(agreed, True, [("difference", 2e-6)]), (agreed, True, told)],
        (file, f"{form}-conv2"): [(trained, True, [])],
    }
    forms = {file: [form]}
    assert cells_of(rows(collected, forms)) == [["wavlm", form, "flat", "yes", "2e-06", "yes"]]
    collected[file, f"{form}-merge"] = [(trained, False, [])]
    collected[file, form][1:] = [(agreed, False, [("difference", 0.5)])]
    assert cells_of(rows(collected, forms)) == [
        ["unknown", form, "unknown", "no", "5e-01, fails", "no"]
    ]
