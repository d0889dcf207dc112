"""Write every pair's report anew: `python -m tests.golden.write`. Read the difference before it is committed."""

from tests.golden.pairs import REPORTS, pairs, stored_form


def main() -> None:
    REPORTS.mkdir(exist_ok=True)
    wanted = {f"{pair.name}.json": stored_form(pair) for pair in pairs() if not pair.bug}
    for stale in {path.name for path in REPORTS.glob("*.json")} - set(wanted):
        (REPORTS / stale).unlink()
    for name, text in wanted.items():
        (REPORTS / name).write_bytes(text)
    print(f"wrote {len(wanted)} reports to {REPORTS}")


if __name__ == "__main__":
    main()
