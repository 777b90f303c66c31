"""What was found, for people."""

import shlex

from fairseq_speedup.optimize import outcome


def page_of(bench, lines, best, budget, commands, confirmed, training) -> str:
    """The table and what to do next, in Markdown."""
    measure = bench.scoring.measure if bench.by_labels else "Distance from the model's own text"
    text = [outcome.table(bench, lines), ""]
    text.append(
        f"{measure} over {len(bench.indices)} utterances, {sum(bench.num_words)} words. Time: as a "
        f"fraction of that of the model as it is, in turns with it, on {len(bench.timed)} "
        "utterances; median and range."
    )
    if len(bench.measured) == 1:
        text.append("Nothing but the model as it is was measured: give a longer --time-limit.")
    needed = outcome.words_needed(bench, best, budget)
    if needed is not None:
        text.append(
            f"This set cannot tell a budget of {budget:g} points from chance: it would take about "
            f"{needed} words."
        )
    apart = max(abs(each - 1) for each in bench.noise or [1.0])
    if apart > outcome.NOISE_TO_RANK:
        text.append(
            "The machine was too noisy to rank what is near: the model as it is differed from "
            f"itself by up to {100 * apart:.0f} % in a round."
        )
    text += ["", "Use it:", ""]
    for command, said in zip(commands, confirmed, strict=True):
        text += [f"    {shlex.join(command)}", f"    # {said}"]
    if training:
        text += ["", "What fine-tuning would add, with this model as start and teacher:", ""]
        for command, each in training:
            text += [f"    # {each.share:.2f} of the MACs; {each.expectation}", f"    {command}"]
            if each.then:
                text.append(f"    # then: {each.then}")
    return "\n".join(text) + "\n"
