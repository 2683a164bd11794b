// The live view: asks for the last decisions while somebody looks. Knows no question.

import { getJson } from "./api.js";
import { drawGates, stackedGates } from "./gates.js";

const EVERY_MS = 1500;
const SHOWN = 40;

export class Live {
  constructor() {
    this.paused = false;
    this.seen = -1;
    const button = document.getElementById("pause");
    button.addEventListener("click", () => {
      this.paused = !this.paused;
      button.setAttribute("aria-pressed", String(this.paused));
      button.textContent = this.paused ? "Resume" : "Pause";
    });
    setInterval(() => this.refresh(), EVERY_MS);
    this.refresh();
  }

  async refresh() {
    if (this.paused || document.hidden) return;
    try {
      this.draw(await getJson("inspect/decisions"));
    } catch {
      document.getElementById("live-count").textContent = "the bridge does not answer";
      this.seen = -1;
    }
  }

  draw({ count, kept, marginals, decisions }) {
    if (count === this.seen) return;
    this.seen = count;
    document.getElementById("live-count").textContent =
      count === 0 ? "none yet" : `${count} in all, the last ${kept} counted`;
    drawGates(document.getElementById("marginals"), marginals);
    const rows = decisions.slice(0, SHOWN).map((decision) => rowOf(decision));
    document.getElementById("decisions").replaceChildren(...rows);
  }
}

function rowOf(decision) {
  const row = document.createElement("tr");
  row.append(
    cell(new Date(decision.at_s * 1000).toLocaleTimeString("en-GB")),
    cell(stackedGates(decision.gates)),
    cell(decision.reason),
    cell(decision.confidence.toFixed(3), "number"),
    cell(decision.entropy.toFixed(3), "number"),
    cell(decision.ms.toFixed(0), "number"),
  );
  return row;
}

function cell(content, className = "") {
  const made = document.createElement("td");
  made.className = className;
  made.append(content);
  return made;
}
