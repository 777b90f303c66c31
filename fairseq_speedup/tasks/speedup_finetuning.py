"""``speedup_finetuning``: fairseq's ``audio_finetuning`` for CTC models, with decoding."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any

from fairseq.data import Dictionary
from fairseq.dataclass.utils import gen_parser_from_dataclass, merge_with_parent
from fairseq.models.wav2vec.wav2vec2_asr import Wav2VecCtc
from fairseq.scoring.wer import WerScorerConfig
from fairseq.tasks import register_task
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig, AudioFinetuningTask
from omegaconf import DictConfig, OmegaConf

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.config import reduction_options
from fairseq_speedup.criterions.frontend_match import reduce_frontend_loss
from fairseq_speedup.data.audio import CheckedAudioDataset
from fairseq_speedup.data.manifest import (
    check_post_process,
    infer_labels,
    read_labels,
    read_manifest,
)
from fairseq_speedup.data.noise import NoiseConfig, check_noise, in_noise
from fairseq_speedup.decoding.language.boundaries import LabelWords
from fairseq_speedup.decoding.options import DecodingOptions
from fairseq_speedup.decoding.run import DecodingRun
from fairseq_speedup.inference import InferenceConfig
from fairseq_speedup.models.exported_ctc import KIND, ExportedCtc, ExportedLengths
from fairseq_speedup.models.lengths import model_lengths
from fairseq_speedup.models.overrides import FINETUNED_MODELS
from fairseq_speedup.models.speedup_ctc import SpeedupCtc
from fairseq_speedup.profiling.training import (
    ForwardTimer,
    TrainingProfile,
    reduce_compute_metrics,
)
from fairseq_speedup.speeds import Speeds
from fairseq_speedup.sweeps import forget_earlier_training
from fairseq_speedup.tasks.dictionaries import (
    check_same_dictionary,
    check_size_of_head,
    read_target_dictionary,
)
from fairseq_speedup.tasks.generation import build_ctc_generator, watch_for_inference
from fairseq_speedup.tasks.matching import FrontEndMatching
from fairseq_speedup.tasks.splits import check_batches, check_split
from fairseq_speedup.tasks.training_checks import (
    STARTS,
    check_criterion_options,
    check_start,
    check_trains_all,
    check_wer_of_validation,
)

logger = logging.getLogger(__name__)

WITHOUT_LABELS = "; python -m fairseq_speedup transcribe decodes audio files without labels"


@dataclass
class SpeedupFinetuningConfig(InferenceConfig, DecodingOptions, NoiseConfig, AudioFinetuningConfig):
    allow_infeasible_ctc: bool = field(
        default=False,
        metadata={
            "help": "train even if more than half of the utterances have fewer output frames "
            "than CTC needs for their labels"
        },
    )


@register_task("speedup_finetuning", dataclass=SpeedupFinetuningConfig)
class SpeedupFinetuningTask(AudioFinetuningTask):
    """Fine-tunes and decodes CTC models, ours and stock ``wav2vec_ctc``.

    Beyond fairseq's task: data are checked before training, every utterance is used, compute is
    logged, and stock ``fairseq-generate`` decodes.
    """

    cfg: SpeedupFinetuningConfig

    def __init__(self, cfg: SpeedupFinetuningConfig):
        super().__init__(cfg)
        self.sample_rate = cfg.sample_rate  # in Hz; a checkpoint's own when decoding
        self.lengths: Any = None  # of the model being trained or decoded
        self.label_words: dict[str, LabelWords] = {}  # of splits that are scored
        self.post_process = None  # the criterion's, of its wer
        self.has_exits = self.has_gates = False
        self.exit_heads_only = False
        self.speeds: Speeds | None = None  # of a model that is trained at one or at many
        self.frame_dim: int | None = None  # of its transformer
        self.matching: FrontEndMatching | None = None
        self.profile: TrainingProfile  # set with the model
        self.zero_infinity = True
        self.decoding_run: DecodingRun | None = None

    @classmethod
    def add_args(cls, parser):
        """fairseq's, with WER where the command line names no --scoring: its default is BLEU."""
        super().add_args(parser)
        parser.set_defaults(scoring="wer")
        gen_parser_from_dataclass(parser, WerScorerConfig())  # for which fairseq looks too early

    # -- dictionary ------------------------------------------------------------------------------

    @classmethod
    def with_dictionary(cls, cfg, dictionary: Dictionary) -> "SpeedupFinetuningTask":
        """A task that has its dictionary already, and reads none from ``cfg.data``."""
        task = cls(cfg)
        task.state.merge_state_dict({"target_dictionary": dictionary})
        return task

    @classmethod
    def around(cls, model, cfg, loaded) -> "SpeedupFinetuningTask":
        """A task of ours for a model that was loaded, which decodes stock models too.

        Args:
            cfg, loaded: the whole config and the task that the model was loaded with
        """
        task = cls.with_dictionary(completed(cfg.task), loaded.target_dictionary)
        task.lengths = model_lengths(model)
        return task

    def load_target_dictionary(self):
        if not self.cfg.labels:
            self.cfg.labels = infer_labels(self.cfg.data)
        return read_target_dictionary(self.cfg)

    def load_state_dict(self, state_dict):
        """Takes the dictionary from a checkpoint, which must agree with the data's."""
        ours = self.state.state_dict.get("target_dictionary")
        check_same_dictionary(ours, state_dict.get("target_dictionary"), self.cfg.data)
        super().load_state_dict(state_dict)

    # -- model and criterion ---------------------------------------------------------------------

    def build_model(self, model_cfg, from_checkpoint=False):
        if from_checkpoint and model_cfg._name not in [*FINETUNED_MODELS, KIND]:  # nor is it built
            raise _other_kind(model_cfg)
        if not from_checkpoint:
            forget_earlier_training()
            check_noise(self.cfg)
            check_start({name: self.of_training(name) for name in STARTS})
        elif model_cfg.get("widths"):  # of training; once loaded, a model has one
            model_cfg.widths = []
        model = super().build_model(model_cfg, from_checkpoint)
        if isinstance(model, ExportedCtc):
            self.lengths = ExportedLengths(model.session.metadata)
            watch_for_inference(self, model)
            return model
        if not hasattr(model, "w2v_encoder"):
            raise _other_kind(model_cfg)
        if isinstance(model, SpeedupCtc):
            # with w2v_args, which fairseq takes from the model into the checkpoint
            for name, value in reduction_options(model.cfg).items():
                model_cfg[name] = value
        self.lengths = model_lengths(model)
        self.has_exits = getattr(model.w2v_encoder, "exit", None) is not None
        self.has_gates = getattr(model.w2v_encoder, "pruning", None) is not None
        self.exit_heads_only = model_cfg.get("exit_heads_only", False)
        self.speeds = getattr(model.w2v_encoder, "speeds", None)
        self.frame_dim = model.w2v_encoder.w2v_model.encoder.embedding_dim
        if getattr(model.w2v_encoder, "cnn_teacher", None) is not None:
            self.matching = FrontEndMatching(self, model_cfg.frontend_match_updates)
            self.matching.check_updates_left(
                self.of_training("optimization.max_update") or 0,
                without_labels=bool(self.of_training("dataset.disable_validation")),
            )
        self.profile = TrainingProfile(model, self.sample_rate)
        if from_checkpoint:
            watch_for_inference(self, model)
            if isinstance(model, Wav2VecCtc) and not isinstance(model, SpeedupCtc):
                head = model.w2v_encoder.proj
                check_size_of_head(head, self.target_dictionary, self.cfg.data)
        return model

    def of_training(self, option: str):
        """A value of the whole config, where the task has it; None where not."""
        if not OmegaConf.is_config(self.cfg):
            return None
        return OmegaConf.select(self.cfg._get_root(), option)

    def build_criterion(self, cfg: DictConfig, from_checkpoint=False):
        if not from_checkpoint:
            check_criterion_options(cfg)
        if cfg.get("post_process") is not None:
            check_post_process(self.cfg.labels, cfg.post_process, option="criterion.post_process=")
        check_trains_all(cfg._name, self.has_exits, self.has_gates, self.exit_heads_only)
        self.zero_infinity = cfg.get("zero_infinity", True)
        self.post_process = cfg.get("post_process")
        return super().build_criterion(cfg, from_checkpoint)

    # -- data ------------------------------------------------------------------------------------

    def load_dataset(self, split: str, task_cfg=None, **kwargs):
        """Loads a split with its labels, checked.

        Args:
            task_cfg: given by fairseq-generate, the task config of the checkpoint
            kwargs: fairseq's trainer gives ``data_selector`` for the training split alone
        Raises:
            FileNotFoundError, ManifestError, BadUtteranceError: naming the file and the line
        """
        decoding = task_cfg is not None
        if decoding:
            task_cfg = completed(task_cfg)
            task_cfg.labels = self.cfg.labels or task_cfg.labels
            # of training: fairseq would cut long utterances and leave out short ones
            task_cfg.max_sample_size = task_cfg.min_sample_size = None
            self.sample_rate = task_cfg.sample_rate
        cfg = task_cfg or self.cfg
        if cfg.multi_corpus_keys is not None or cfg.binarized_dataset:
            logger.warning("%s: binarized and multi-corpus data are not checked", split)
            super().load_dataset(split, task_cfg, **kwargs)
            return
        manifest = read_manifest(os.path.join(self.cfg.data, f"{split}.tsv"))
        labels_path = os.path.join(self.cfg.data, f"{split}.{cfg.labels}")
        labels = read_labels(labels_path, manifest, WITHOUT_LABELS if decoding else "")
        training = "data_selector" in kwargs
        if not training:
            self.label_words[split] = LabelWords.of(labels_path, labels)
            if not decoding:
                check_wer_of_validation(self.label_words[split], self.post_process)
        super().load_dataset(split, task_cfg, **kwargs)
        check_split(self, split, manifest, labels, decoding, training)

    def get_batch_iterator(self, dataset, max_tokens=None, max_sentences=None, **kwargs):
        """fairseq's, except that ``required_batch_size_multiple`` is always 1: fairseq drops the
        last batch where it is no multiple, in training, validation and decoding."""
        run = self.decoding_run
        if run is not None:
            in_windows = self.cfg.window_seconds > 0
            max_tokens = run.admit_longest(dataset, max_tokens, max_sentences, in_windows)
            kwargs |= {"num_shards": run.num_shards, "shard_id": run.shard_id}
        else:
            audio = getattr(dataset, "dataset", None)
            if isinstance(audio, CheckedAudioDataset):
                check_batches(audio, max_tokens)
        kwargs["required_batch_size_multiple"] = 1
        iterator = super().get_batch_iterator(
            dataset, max_tokens=max_tokens, max_sentences=max_sentences, **kwargs
        )
        if run is not None:
            run.watch(iterator, dataset)
        return iterator

    # -- steps -----------------------------------------------------------------------------------

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        sample = in_noise(sample, self.cfg)
        if self.matching is not None:
            criterion = self.matching.criterion_of(update_num, model, criterion, optimizer)
        loss, sample_size, logging_output = super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad
        )
        # for a dummy batch too: workers sum their logs, which must have the same keys
        logging_output.update(self.profile.cost(sample))
        return loss, sample_size, logging_output

    def valid_step(self, sample, model, criterion):
        with ForwardTimer(model) as timer:
            loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        logging_output.update(self.profile.cost(sample), _model_seconds=timer.seconds)
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        reduce_compute_metrics(logging_outputs)
        reduce_frontend_loss(logging_outputs)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **unused):
        """A CTC generator for ``fairseq-generate`` (and for anything that drives a generator)."""
        return build_ctc_generator(self, models, args)


def _other_kind(model_cfg) -> CheckpointError:
    return CheckpointError(
        f"this task fine-tunes and decodes {' and '.join(FINETUNED_MODELS)} models, not "
        f"{model_cfg._name}; a pretrained checkpoint is given as model.w2v_path"
    )


def completed(task_cfg) -> DictConfig:
    """A checkpoint's task config with the fields that its fairseq did not have yet."""
    cfg = OmegaConf.create(OmegaConf.to_container(task_cfg, enum_to_str=True))
    cfg.tpu = False  # fairseq's default looks it up in the whole config, which is not here
    return merge_with_parent(SpeedupFinetuningConfig(), cfg, remove_missing=True)
