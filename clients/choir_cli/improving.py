"""`choir improve` and `choir report`: what to do next, and the page of the report drawn again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from choir_cli.console import out, table

if TYPE_CHECKING:
    from training.improve.run import NextSteps


def improve(
    bundle: Annotated[
        Path, typer.Argument(help="The folder of the bundle, with its training's record.")
    ],
    ensemble: Annotated[str, typer.Option(help="The ensemble's name.")],
    minutes: Annotated[
        float,
        typer.Option(
            min=0, help="Begin no trial that would end later than this. Cheap steps come first."
        ),
    ] = 15,
    json: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
) -> None:
    """Measure what would make an ensemble better, on the validation rows, and what each step costs."""
    from training.improve.run import next_steps
    from training.progress import quiet_libraries

    quiet_libraries()
    steps = next_steps(bundle, ensemble, minutes)
    _show(steps)
    if json is not None:
        json.write_text(steps.model_dump_json(indent=2) + "\n", encoding="utf-8")


def report(
    bundle: Annotated[Path, typer.Argument(help="The folder of the bundle.")],
) -> None:
    """Draw the page of the report again, for example after a leaderboard was made."""
    from serve.bundle import Bundle
    from training.report.write import draw_page

    out.verbatim(str(draw_page(Bundle.open(bundle))))


def _show(steps: "NextSteps") -> None:
    criterion = steps.criterion.replace("_", " ")
    shown = table(
        f"Next steps for {steps.ensemble}: {criterion} is {steps.value:.4f} on {steps.rows} validation rows",
        "step",
        "gain",
        "95% of resamples",
        "p",
        "minutes to do",
        "measured on",
    )
    for each in steps.findings:
        gain = each.gain
        shown.add_row(
            each.step,
            f"{gain.value:+.4f}",
            f"{gain.low:+.4f} to {gain.high:+.4f}",
            f"{gain.p:.3f}",
            "?" if each.minutes is None else f"{each.minutes:.1f}",
            each.compared,
            marked=gain.value > 0 and gain.p < 0.05,
        )
    out.print(shown)
    reasons = dict.fromkeys(each.reason for each in steps.skipped)
    for reason in reasons:
        names = ", ".join(each.step for each in steps.skipped if each.reason == reason)
        out.say(f"not measured: {names}: {reason}")
    helping = [each for each in steps.findings if each.gain.value > 0 and each.gain.p < 0.05]
    out.say(
        f"{len(helping)} of {len(steps.findings)} steps help by more than chance (p below 0.05; one in twenty does so "
        f"by chance alone). Measured in {steps.minutes:.1f} minutes. What helps one member may help the ensemble less."
    )
