"""The router against every single arm, random choice, the rules and the best choice in hindsight, on public sets.

A third of the questions has its documents withheld from the index, so that refusing is the right answer there. For each set an adapter is
trained on its train split (fineva: one for each of five folds); every arm answers every question through the code that serves, with answers
of at most 96 tokens and passages of at most 400. Routers are trained on four fifths of the questions and decide the others; questions that
share a document stay together. The Chinese base is Gemma 3 270M (fetched when missing, its own terms of use).

Collecting the answers takes hours of a processor and can be stopped at any time: --state keeps what is there, and the same command goes on.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedding_cache import default_cache
from harness import Claim, above, at_most, finish, options, print_table
from proof_collect import MAX_TOKENS, PASSAGE_TOKENS, TRAINING, Size, collect, collected
from proof_sets import SETS, TRAIN
from proof_strategies import calibration, compare, labelling, risk, signals, timing

from appliance.cli.session import Progress, say
from router.fit import FEWEST

QUICK = Size(36, 60, 16)


def claims_of(name: str, rows: list[dict[str, Any]]) -> list[Claim]:
    """The gain's lower bound (0 where too few questions differ to show any), the generated tokens beside those of `hybrid` (nothing is
    saved where that generates none), and the share of the oracle's gain."""
    router = next(row for row in rows if row["strategy"] == "router")
    return [
        above(f"router_gain_ci_low.{name}", 0.0 if router["few"] else router["low"], 0.0, "utility"),
        at_most(f"router_token_ratio.{name}", 1.0 if router["token_ratio"] is None else router["token_ratio"], 0.7, "ratio"),
        above(f"router_oracle_share.{name}", router["oracle_share"], 0.0, "share"),
    ]


def risk_claims(name: str, rows: list[dict[str, Any]]) -> list[Claim]:
    """How many more wrong answers there were than the target allows, beyond what so few answers can tell."""
    targets = [row for row in rows if row["target"] is not None and row["wrong"] is not None]
    return [
        at_most(f"router_risk_beyond_{row['target']}.{name}", row["wrong"] - row["target"] - row["margin"], 0.0, "share") for row in targets
    ]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--sets", default="medquad,lecoqa,cuad,fineva", help="which, joined by commas (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many questions of each set")
    parser.add_argument("--documents", type=int, help="at most so many documents in each index (default: all)")
    parser.add_argument("--train", type=int, default=TRAIN, help="pairs each adapter is trained on (default: %(default)s)")
    parser.add_argument("--state", type=Path, default=default_cache() / "router_proof", help="where answers are kept")
    parser.add_argument("--report-only", action="store_true", help="ask nothing more, compare what is there")
    given = parser.parse_args()
    known = {one.name: one for one in SETS}
    names = given.sets.split(",") if not given.quick else ["medquad"]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--sets: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    if given.data is None or not (Path(given.data) / known[names[0]].folder).is_dir():
        parser.error("name the folder of public data sets: --data DIR or $APPLIANCE_DATA")
    size = QUICK if given.quick else Size(given.limit, given.documents, given.train)
    kept: list[dict[str, Any]] = []
    claims: list[Claim] = []
    for name in names:
        if not given.report_only:
            with Progress() as progress:
                collect(given.data, given.state, default_cache() / "embeddings.db", known[name], size, progress)
        asked = collected(given.data, given.state, known[name], size)
        if len(asked) < FEWEST:
            say(f"{name}: {len(asked)} questions have all their answers, {FEWEST} are needed; left out")
            continue
        found = labelling(asked)
        rows = compare(name, found)
        tables = {"strategies": rows, "calibration": calibration(name, found), "risk": risk(name, found)}
        decision = timing(name, found, asked)
        tables |= {"signals": signals(name, found), "decision": [decision]}
        for title, table in tables.items():
            print_table(f"{name}: {title}", table)
            kept += [{"table": title, **row} for row in table]
        if not given.quick:
            claims += [*claims_of(name, rows), *risk_claims(name, tables["risk"])]
            claims.append(at_most(f"decision_p50_beyond_retrieval.{name}", decision["served_p50_ms"], 2.0, "ms"))
    settings = {"quick": given.quick, "sets": names, "size": asdict(size), "max_tokens": MAX_TOKENS, "passage_tokens": PASSAGE_TOKENS}
    settings |= {"training": TRAINING.to_json(), "bases": {name: known[name].base for name in names}}
    finish(given.json, settings, kept, claims)


if __name__ == "__main__":
    main()
