"""Invented words of the schedule, the log-on dialog, the desktop, the chart and the ledger.

Knows no pixels.
"""

from __future__ import annotations

import datetime
import random

from training.screens.claim_content import FIRST_NAMES, SURNAMES

USERS = (
    "Admin", "Assistant1", "Assistant2", "Billing", "Front1", "Front2", "Hygiene1", "Hygiene2",
    "Intern", "Lab", "Manager", "Recall", "Server", "Training", "Xray", "ada", "ben", "cleo",
    "dan", "eva", "finn", "gus", "hana", "ida", "jan", "kai", "leo", "mia", "nils", "olga",
    "pia", "quin", "rosa", "sven", "tess", "ugo", "vera", "wim", "yara", "zoe",
)  # fmt: skip
PASSWORD_WORDS = ("maple", "river", "stone", "cloud", "amber", "pixel", "lemon", "tiger", "ocean")
ICONS = (
    "Account", "Appointments", "Backup", "Billing", "Browser", "Calendar", "Camera", "Chart",
    "Claims", "Documents", "Downloads", "E-Prescribe", "Fax", "Forms", "Help Desk", "Imaging",
    "Labels", "Mail", "Messenger", "Music", "Notepad", "Payroll", "Perio Probe", "Phone",
    "Photos", "Printer", "Recall List", "Recycle Bin", "Reports", "Scanner", "Settings",
    "Spreadsheet", "This PC", "Time Clock", "Vault", "X-Ray Viewer",
)  # fmt: skip
VISITS = (
    "Exam", "Cleaning", "Crown", "Filling", "Root canal", "Recall", "X-rays", "Consult",
    "Emergency", "Denture", "Implant", "Whitening",
)  # fmt: skip
STATUSES = {
    "Unconfirmed": "#d83a3a", "Confirmed": "#2f9e44", "Here": "#e8a400", "Ready": "#1c7ed6",
    "Complete": "#868e96",
}  # fmt: skip
NOTE_LINES = (
    "Patient tolerated the procedure well.", "Reviewed medical history, no changes.",
    "Anesthetic: one carpule, no epinephrine.", "Prophylaxis completed, polish and floss.",
    "Discussed home care and brushing technique.", "Bitewings taken, no new caries noted.",
    "Composite placed, occlusion checked.", "Recommended night guard, patient will decide.",
    "Impressions taken, shade A2 selected.", "Temporary crown cemented, margins closed.",
    "Sutures removed, healing as expected.", "Referred to a specialist for evaluation.",
    "Next visit: recall in six months.", "Pulp vitality test within normal limits.",
    "Fluoride varnish applied.", "Post-op instructions given in writing.",
)  # fmt: skip
CODES = (
    ("D0120", "Periodic oral exam"), ("D0140", "Limited oral exam"), ("D0274", "Bitewings, four"),
    ("D1110", "Prophylaxis, adult"), ("D1208", "Topical fluoride"), ("D2140", "Amalgam"),
    ("D2391", "Composite"), ("D2740", "Crown, ceramic"), ("D3310", "Root canal"),
    ("D4341", "Scaling"), ("D7140", "Extraction"),
)  # fmt: skip
FIRST_YEAR, LAST_YEAR = 2019, 2031


def everyone() -> list[tuple[str, str]]:
    """All the people there are, as (first name, surname)."""
    return [(first, surname) for surname in SURNAMES for first in FIRST_NAMES]


def patients(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Draws different people."""
    return rng.sample(everyone(), count)


def dates(rng: random.Random, count: int, *, apart_days: tuple[int, int]) -> list[datetime.date]:
    """Draws dates in rising order.

    Args:
        rng: Source of randomness.
        count: How many.
        apart_days: The least and the largest distance of neighbours.

    Returns:
        `count` different dates.
    """
    start = datetime.date(rng.randint(FIRST_YEAR, LAST_YEAR), rng.randint(1, 12), 1)
    drawn = [start + datetime.timedelta(days=rng.randint(0, 27))]
    while len(drawn) < count:
        drawn.append(drawn[-1] + datetime.timedelta(days=rng.randint(*apart_days)))
    return drawn


def numeric(date: datetime.date) -> str:
    """As the screens write a date: MM/DD/YYYY."""
    return f"{date:%m/%d/%Y}"


def spoken(date: datetime.date) -> str:
    """As people ask for a date without its year: `December 3`."""
    return f"{date:%B} {date.day}"
