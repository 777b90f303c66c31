"""When a training matches its front-end, and when it goes on."""

from fairseq_speedup.criterions.ctc_pruning import unwrapped
from fairseq_speedup.criterions.frontend_match import FrontEndMatchCriterion
from fairseq_speedup.frontend.matching import forget_momentum


class FrontEndMatching:
    """The first updates of a training, in which the front-end alone learns to reproduce the CNN.

    Args:
        task: that trains
        updates: ``model.frontend_match_updates``
    """

    def __init__(self, task, updates: int):
        self.criterion = FrontEndMatchCriterion(task)
        self.updates = updates
        self._begun = self._ended = False

    def check_updates_left(self, max_update: int, without_labels: bool) -> None:
        """That not every update of a training with labels goes to the front-end.

        Raises:
            ValueError: naming the options
        """
        if 0 < max_update <= self.updates and not without_labels:
            raise ValueError(
                f"model.frontend_match_updates={self.updates} takes all of "
                f"optimization.max_update={max_update}, and CTC would train nothing: raise "
                "optimization.max_update, which counts both, or lower the other; "
                "dataset.disable_validation=true matches alone, as on audio without labels"
            )

    def criterion_of(self, update_num: int, model, criterion, optimizer):
        """The criterion of an update: ours, or from the end of matching on the training's own. At
        the end the teacher goes, and the momentum of what does not learn any more."""
        if self._ended:
            return criterion
        encoder = unwrapped(model).w2v_encoder
        if update_num == 0 and not self._begun:
            self._begun = True
            encoder.begin_matching()
        if update_num < self.updates:
            return self.criterion
        self._ended = True
        if encoder.end_matching() and update_num == self.updates:
            forget_momentum(optimizer)
        return criterion
