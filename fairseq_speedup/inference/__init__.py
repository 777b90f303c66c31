"""The inference form of a fine-tuned model: the same numbers (or nearly, see the forms), faster."""

from fairseq_speedup.inference.form import FORMS, to_inference_form

__all__ = ["FORMS", "to_inference_form"]
