"""The end of a rehearsal, for people: what happened, how long the guest was away and why, and what the audit found."""

from typing import Any

from migrate.cli.output import console, mebibytes, print_table

Json = dict[str, Any]


def print_summary(document: Json, title: str) -> None:
    out = console()
    out.print()
    out.print(f"{title}: {document['outcome']}", style="bold", markup=False)
    for number, attempt in enumerate(document["attempts"], 1):
        prefix = f"attempt {number}: " if len(document["attempts"]) > 1 else ""
        _print_attempt(attempt, prefix)
    guest, audit = document["guest"], document["audit"]
    out.print()
    if guest["blackout_ms"] is not None:
        out.print(f"guest     away for {guest['blackout_ms']:.1f} ms by its own clock")
    if guest["records_found"] is not None:
        out.print(f"records   {guest['records_found']} found of {guest['records_acknowledged']} acknowledged")
    if guest["away_ms"] is not None:
        seen = ", ".join(f"{ms:.1f} ms by the {how}" for how, ms in guest["away_ms"].items() if ms is not None)
        out.print(f"ledger    longest time between two records {seen}")
    out.print(f"owner     {document['owner']}")
    violations = audit["violations"]
    checks = ", ".join(audit["checks"])
    out.print(f"audit     {len(audit['checks'])} checks, {len(violations) or 'none'} violated: {checks}", markup=False)
    for violation in violations:
        out.print(f"  VIOLATED {violation['check']}: {violation['message']}", style="bold", markup=False)


def _print_attempt(attempt: Json, prefix: str) -> None:
    out = console()
    if attempt["reasons"]:
        out.print(f"{prefix}refused by the {attempt['error']['side']}, before any RAM moved:", markup=False)
        print_table(
            ("component", "field", "has", "needed"),
            [[reason[key] for key in ("component", "field", "have", "need")] for reason in attempt["reasons"]],
        )
        return
    if attempt["error"] is not None:
        error = attempt["error"]
        out.print(
            f"{prefix}{attempt['outcome']} in phase {attempt['phase']!r} on the {error['side']}: {error['message']} "
            f"({error['class']})",
            markup=False,
        )
    if attempt["spec_version"] is not None:
        newer = attempt["why_not_newer"]
        why = "" if newer else ", the newest that the source knows"
        out.print(f"{prefix}spec version {attempt['spec_version']}{why}", markup=False)
        for line in newer:
            out.print(f"  {line}", markup=False)
    if attempt["rounds"]:
        print_table(
            ("round ", "pages ", "zero ", "sent ", "took ms ", "rate ", "dirtied "),
            [_round(round_) for round_ in attempt["rounds"]],
        )
    ledger = attempt["ledger"]
    if ledger["steps"]:
        downtime = "" if ledger["downtime_ms"] is None else f"downtime {ledger['downtime_ms']:.1f} ms, "
        total = "" if ledger["total_ms"] is None else f"of {ledger['total_ms']:.0f} ms in all"
        print_table(
            ("side", "step", "from ms ", "took ms "),
            [
                (step["side"], step["step"], f"{step['start_ms']:.2f}", f"{step['duration_ms']:.2f}")
                for step in ledger["steps"]
            ],
            title=f"{downtime}{total}".strip() or None,
        )


def _round(round_: Json) -> tuple[object, ...]:
    rate = round_["bytes"] / max(round_["duration_ms"] / 1e3, 1e-9)
    return (
        round_["number"],
        f"{round_['pages']:,}",
        f"{round_['zero_pages']:,}",
        mebibytes(round_["bytes"]),
        f"{round_['duration_ms']:.1f}",
        f"{mebibytes(rate)}/s",
        f"{round_['dirtied_pages']:,}",
    )
