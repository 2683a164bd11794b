// One result: fills a card as the bridge's events arrive. Knows no request.

import { drawGates } from "./gates.js";

const REASONS = {
  ROUTER: "the router's head alone",
  MANUAL_OVERRIDE: "an expert was forced",
  AGENT_ACCEPTED: "the agent agreed with the head or outweighed it",
  AGENT_VETOED: "the head overruled the agent",
  AGENT_FAST_PATH: "the agent was trusted without a look",
  TOP2_FALLBACK: "nobody was sure: two experts share",
  ABSTAINED: "no expert knows this screen",
};
const PHASES = [
  ["features", "features_ms"],
  ["head", "head_ms"],
  ["queue", "queue_ms"],
  ["vision", "vision_ms"],
  ["prefill", "prefill_ms"],
  ["decode", "decode_ms"],
];
const FULL_SCALE = 1000;
const SHOWN_MS = 0.05;
const SPOKEN = 80;

export class Card {
  constructor(letter, what, screen) {
    const template = document.getElementById("card");
    this.element = template.content.firstElementChild.cloneNode(true);
    this.letter = letter;
    this.what = what;
    this.screen = screen;
    this.routeTimings = {};
    this.answer = null;
    this.find(".badge").textContent = letter;
    this.find(".what").textContent = what;
    this.element.setAttribute("aria-label", `Result ${letter}: ${what}`);
    this.element.setAttribute("aria-busy", "true");
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  show(selector) {
    const part = this.find(selector);
    part.hidden = false;
    return part;
  }

  take(event) {
    if (event.event === "decision") this.showDecision(event);
    else if (event.event === "text") this.addText(event.text);
    else if (event.event === "completed") this.showAnswer(event);
  }

  showDecision(decision) {
    const reason = this.show(".reason");
    reason.textContent = decision.reason;
    reason.classList.add(`reason-${decision.reason.toLowerCase().replaceAll("_", "-")}`);
    const count = Object.keys(decision.probabilities).length;
    const most = count > 1 ? ` of ${Math.log(count).toFixed(2)} nats` : " nats";
    this.show(".why").textContent = REASONS[decision.reason] ?? "";
    const facts = [
      ["Confidence", decision.confidence.toFixed(3)],
      ["Entropy", `${decision.entropy.toFixed(3)}${most}`],
    ];
    if (decision.distance !== null) facts.push(["Distance", decision.distance.toFixed(3)]);
    fill(this.find(".facts"), facts);
    this.drawGates(decision.gates, decision.probabilities);
    this.routeTimings = decision.timings;
  }

  drawGates(gates, probabilities) {
    this.show(".gates-title");
    drawGates(this.find(".gates"), gates, probabilities);
    this.find(".gates-key").hidden = Object.keys(probabilities).length === 0;
  }

  addText(text) {
    this.show(".answer-title");
    this.show(".text").textContent += text;
  }

  showAnswer(completed) {
    this.answer = completed;
    this.element.removeAttribute("aria-busy");
    if (completed.applied.base_only) this.show(".why").textContent = "no expert ran: the bare base";
    this.showCalls(completed);
    this.showTime(completed);
    this.showApplied(completed);
  }

  showCalls({ calls, calls_unreadable: unreadable, text }) {
    this.show(".answer-title");
    this.find(".text").textContent = text;
    this.find(".text").hidden = calls.length > 0 || text === "";
    if (!calls.length) {
      this.show(".no-call").textContent = unreadable ?? "no tool call in it";
      return;
    }
    const list = this.show(".calls");
    list.replaceChildren(...calls.map((call) => described(call)));
    const drawn = calls.flatMap((call, index) => (onScreen(call) ? [[call, index]] : []));
    if (drawn.length) this.drawClicks(drawn);
  }

  drawClicks(drawn) {
    const figure = this.show("figure");
    const screen = figure.querySelector(".screen");
    const image = screen.querySelector("img");
    image.src = this.screen.url;
    image.alt = `The screen with ${drawn.map(([call]) => call.action).join(", ")} drawn on it`;
    const lines = drawn.map(([call, index]) => {
      const [x, y] = call.coordinate;
      const mark = document.createElement("span");
      mark.className = "mark";
      mark.style.left = `${(100 * x) / FULL_SCALE}%`;
      mark.style.top = `${(100 * y) / FULL_SCALE}%`;
      const number = document.createElement("b");
      number.textContent = String(index + 1);
      mark.append(number);
      screen.append(mark);
      const { width, height } = this.screen;
      const pixel = [Math.round((x * width) / FULL_SCALE), Math.round((y * height) / FULL_SCALE)];
      return `${call.action} at pixel ${pixel[0]}, ${pixel[1]} of ${width}×${height}`;
    });
    figure.querySelector("figcaption").textContent = lines.join("; ");
  }

  showTime({ timings, total_ms: total }) {
    const place = this.show(".time");
    const all = { ...this.routeTimings, ...timings };
    const phases = PHASES.map(([name, field]) => [name, all[field] ?? 0]);
    const known = phases.reduce((sum, [, ms]) => sum + ms, 0);
    phases.push(["other", Math.max(0, total - known)]);
    const spent = phases.filter(([, ms]) => ms >= SHOWN_MS);
    place.querySelector(".total").textContent = `${total.toFixed(0)} ms`;
    const bars = spent.map(([name, ms]) => {
      const bar = document.createElement("span");
      bar.className = `phase phase-${name}`;
      bar.style.width = `${(100 * ms) / Math.max(total, known)}%`;
      return bar;
    });
    place.querySelector(".phases").replaceChildren(...bars);
    const list = place.querySelector(".phase-list");
    fill(list, spent.map(([name, ms]) => [name, `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`]));
    [...list.children].forEach((row, index) => {
      row.querySelector("dt").className = `phase-name phase-${spent[index][0]}`;
    });
  }

  showApplied({ applied, usage, finish_reason: finish, timings }) {
    const place = this.show(".applied").querySelector("dl");
    const ran = Object.entries(applied.gates).map(([name, gate]) => `${name} ${gate.toFixed(3)}`);
    const rows = [
      ["Experts", applied.base_only ? "none, base only" : ran.join(", ")],
      ...applied.experts.map((one) => [`${one.name}, load ${one.generation}`, one.digest.slice(0, 16)]),
      ["Vision output", applied.vision_reused ? "reused" : "computed with the gates"],
      ["First token", `${timings.time_to_first_token_ms.toFixed(0)} ms`],
      ["Tokens", `${usage.prompt_tokens} in (${usage.image_tokens} of the screen, ${usage.cached_prompt_tokens} kept), ${usage.completion_tokens} out`],
      ["Finish", finish],
    ];
    fill(place, rows);
  }

  showError(text) {
    this.element.removeAttribute("aria-busy");
    this.show(".error").textContent = text;
  }

  // One sentence for those who listen.
  summary() {
    const { calls, text } = this.answer;
    const short = text.length > SPOKEN ? `${text.slice(0, SPOKEN)}…` : text;
    const said = calls.length ? calls.map((call) => words(call)).join(", then ") : short;
    return `${this.letter}, ${this.what}: ${said || "an empty answer"}.`;
  }
}

function onScreen(call) {
  return call.coordinate?.every((part) => part >= 0 && part <= FULL_SCALE) ?? false;
}

function words({ name, action, arguments: given }) {
  const rest = Object.entries(given).filter(([key]) => key !== "action");
  return [action || name, ...rest.map(([key, value]) => `${key} ${JSON.stringify(value)}`)].join(" ");
}

function described(call) {
  const item = document.createElement("li");
  const action = document.createElement("strong");
  action.textContent = call.action || call.name;
  item.append(action);
  for (const [key, value] of Object.entries(call.arguments)) {
    if (key === "action") continue;
    const part = document.createElement("span");
    part.className = "argument";
    const label = document.createElement("span");
    label.className = "soft";
    label.textContent = `${key} `;
    part.append(label, typeof value === "string" ? value : JSON.stringify(value));
    item.append(" ", part);
  }
  return item;
}

// [term, description] pairs, each in a group of its own.
function fill(list, pairs) {
  const groups = pairs.map(([term, description]) => {
    const group = document.createElement("div");
    const name = document.createElement("dt");
    const value = document.createElement("dd");
    name.textContent = term;
    value.textContent = description;
    group.append(name, value);
    return group;
  });
  list.replaceChildren(...groups);
}
