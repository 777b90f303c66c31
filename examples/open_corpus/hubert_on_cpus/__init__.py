"""User directory of pretraining: HuBERT's loss in several processes on CPUs. fairseq gathers what
it logs in a GPU's memory, unless a criterion says that its numbers can be summed. These can.

Importing the plugin also lets a pretraining go on: stock fairseq cannot read its own HuBERT
checkpoints with PyTorch 2.6 and later.
"""

from fairseq.criterions import register_criterion
from fairseq.criterions.hubert_criterion import HubertCriterion, HubertCriterionConfig

import fairseq_speedup  # noqa: F401


@register_criterion("hubert_on_cpus", dataclass=HubertCriterionConfig)
class HubertOnCpus(HubertCriterion):
    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
