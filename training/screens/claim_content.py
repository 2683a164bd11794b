"""Invented words of the Edit Claim dialog; knows no pixels except the columns' widths."""

from __future__ import annotations

import random
from dataclasses import dataclass

PROVIDERS = tuple(
    f"Dr. {surname}"
    for surname in (
        "Adams", "Baker", "Chen", "Diaz", "Evans", "Foster", "Garcia", "Hughes", "Ito", "Jones",
        "Kim", "Lopez", "Meyer", "Novak", "Ortiz", "Patel", "Quinn", "Reyes", "Smith", "Tran",
    )
)  # fmt: skip
SURNAMES = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Hazel", "Juniper", "Larch", "Oak")
FIRST_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida", "Leo", "Mia")
PROVIDER_LABELS = ("Billing Provider", "Treating Provider")
FORM_LABEL = "Claim Form"
LIST_LABELS = (*PROVIDER_LABELS, FORM_LABEL)
FORMS = ("ADA 2024", "ADA 2019", "ADA 2012", "CMS-1500", "UB-04")
HEADER_COLUMNS = (
    ("Patient", "Subscriber", FORM_LABEL, "Claim Type", "Claim Status", "Date of Service"),
    (PROVIDER_LABELS[0], "Carrier", "Plan", "Group Number", "Date Sent", "Clinic"),
    (PROVIDER_LABELS[1], "Deductible", "Fee Billed", "Est. Ins. Pay", "Write-off", "Ref. Number"),
)
TABS = ("General", "Attachments", "Status History", "Misc", "Notes")
OTHER_BUTTONS = (
    "Delete", "Print", "Send", "Label", "History", "Resubmit", "Preview", "Split",
)  # fmt: skip
NOTES = (
    "Claim note: x-rays attached on request.", "Prior authorization not required.",
    "Place of service: office.", "Accident related: no.", "Assignment of benefits: yes.",
    "Replacement of prosthesis: no.", "Employment related: no.",
)  # fmt: skip
COLUMNS = (
    "#", "Date", "Prov", "Code", "Tth", "Description", "Fee", "Billed", "Deduct", "Ins Est",
    "Ins Pay", "W/O", "Pat", "Status", "Pay #", "Hold", "Remarks",
)  # fmt: skip
COLUMN_WIDTHS_PX = (34, 84, 88, 58, 34, 170, 56, 56, 54, 56, 54, 48, 54, 60, 46, 42, 96)
_CLAIM_TYPES = ("Primary", "Secondary", "Preauth", "Medical")
_CARRIERS = ("Acorn Dental", "Bluff Mutual", "Cobalt Health", "Delve Dental")
_STATUSES = ("Unsent", "Sent", "Received", "Hold", "Waiting")
_CODES = (
    ("D0120", "Periodic oral exam"), ("D0140", "Limited oral exam"), ("D0150", "Comp. oral exam"),
    ("D0210", "Full mouth x-rays"), ("D0274", "Bitewings, four"), ("D1110", "Prophylaxis, adult"),
    ("D1120", "Prophylaxis, child"), ("D1208", "Topical fluoride"), ("D2140", "Amalgam, one surf"),
    ("D2391", "Composite, one surf"), ("D2740", "Crown, ceramic"), ("D2950", "Core buildup"),
    ("D3310", "Root canal, front"), ("D4341", "Scaling, quadrant"), ("D7140", "Extraction"),
)  # fmt: skip


@dataclass(frozen=True)
class Procedure:
    """One line of the grid: what it says and its text under each of `COLUMNS`."""

    date: str
    provider: str
    code: str
    cells: tuple[str, ...]


def header_values(rng: random.Random) -> dict[str, str]:
    """Draws a value for each label of `HEADER_COLUMNS`."""
    person = f"{rng.choice(SURNAMES)}, {rng.choice(FIRST_NAMES)}"
    values = {
        "Patient": person,
        "Subscriber": person,
        "Date of Service": _date(rng),
        "Claim Type": rng.choice(_CLAIM_TYPES),
        "Claim Status": rng.choice(_STATUSES),
        FORM_LABEL: rng.choice(FORMS),
        "Carrier": rng.choice(_CARRIERS),
        "Plan": f"Plan {rng.randint(1, 9)}",
        "Group Number": str(rng.randint(10_000, 99_999)),
        "Date Sent": _date(rng),
        "Clinic": rng.choice(("Main", "North", "Lakeside")),
        "Ref. Number": str(rng.randint(100, 999)),
    }
    values |= {label: rng.choice(PROVIDERS) for label in PROVIDER_LABELS}
    for label in ("Deductible", "Fee Billed", "Est. Ins. Pay", "Write-off"):
        values[label] = _money(rng)
    return values


def procedures(rng: random.Random, count: int) -> list[Procedure]:
    """Draws the lines of the grid, numbered from 1."""
    drawn = []
    date = _date(rng)
    for number in range(1, count + 1):
        code, description = rng.choice(_CODES)
        provider = rng.choice(PROVIDERS)
        cells = (
            str(number), date, provider, code, str(rng.randint(1, 32)), description, _money(rng),
            _money(rng), "0.00", _money(rng), "0.00", "0.00", _money(rng), rng.choice(_STATUSES),
            "", "", "",
        )  # fmt: skip
        drawn.append(Procedure(date, provider, code, cells))
    return drawn


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 12):02}/{rng.randint(1, 28):02}/{rng.randint(2020, 2031)}"


def _money(rng: random.Random) -> str:
    return f"{rng.randint(10, 480)}.00"
