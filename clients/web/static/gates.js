// Draws gates. Knows experts by their place in the expert set, which is also their colour.

const COLOURS = 8;
const SHOWN = 0.0005;
let order = [];

export function setExperts(names) {
  order = names;
}

export function colourOf(name) {
  const place = order.indexOf(name);
  return place < 0 ? "var(--other)" : `var(--expert-${place % COLOURS})`;
}

export function sortedNames(...weights) {
  const named = new Set(weights.flatMap((some) => Object.keys(some)));
  const known = order.filter((name) => named.has(name));
  return [...known, ...[...named].filter((name) => !order.includes(name)).sort()];
}

// One bar for each expert; `probabilities` become ticks on the same scale.
export function drawGates(place, gates, probabilities = {}) {
  const template = document.getElementById("gate");
  const rows = sortedNames(gates, probabilities).map((name) => {
    const row = template.content.firstElementChild.cloneNode(true);
    const gate = gates[name] ?? 0;
    const probability = probabilities[name];
    const parts = Object.fromEntries(
      ["name", "bar", "tick", "numbers"].map((part) => [part, row.querySelector(`.${part}`)]),
    );
    parts.name.textContent = name;
    parts.name.title = name;
    parts.bar.style.width = percent(gate);
    parts.bar.style.background = colourOf(name);
    parts.numbers.textContent = gate.toFixed(3);
    if (probability !== undefined) {
      parts.tick.hidden = false;
      parts.tick.style.left = percent(probability);
      const head = document.createElement("span");
      head.className = "soft";
      head.textContent = ` head ${probability.toFixed(3)}`;
      parts.numbers.append(head);
    }
    row.classList.toggle("off", gate === 0);
    return row;
  });
  place.replaceChildren(...rows);
}

// All gates in one bar, for a table's cell.
export function stackedGates(gates) {
  const cell = document.createElement("div");
  cell.className = "stack";
  const bar = document.createElement("span");
  bar.className = "track";
  const names = sortedNames(gates).filter((name) => gates[name] >= SHOWN);
  for (const name of names) {
    const part = document.createElement("span");
    part.style.width = percent(gates[name]);
    part.style.background = colourOf(name);
    bar.append(part);
  }
  const words = document.createElement("span");
  words.textContent = names
    .sort((one, other) => gates[other] - gates[one])
    .map((name) => (gates[name] > 1 - SHOWN ? name : `${name} ${gates[name].toFixed(3)}`))
    .join(", ");
  cell.append(bar, words);
  return cell;
}

function percent(weight) {
  return `${(100 * Math.min(1, Math.max(0, weight))).toFixed(2)}%`;
}
