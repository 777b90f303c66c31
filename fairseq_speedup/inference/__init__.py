"""The inference form of a fine-tuned model: the same numbers (or nearly, see the forms), faster."""

from fairseq_speedup.inference.form import InferenceConfig, form_of, to_inference_form

__all__ = ["InferenceConfig", "form_of", "to_inference_form"]
