// The page: takes a screen and a prompt, asks once or twice, shows cards. Keeps nothing.

import { BridgeFailure, getJson, inspect } from "./api.js";
import { Card } from "./card.js";
import { setExperts } from "./gates.js";
import { Live } from "./live.js";

const TYPES = ["image/png", "image/jpeg"];
const REFRESH_MS = 10000;
const at = (id) => document.getElementById(id);

let screen = null; // {url, dataUrl, width, height}
let running = null; // AbortController
let offered = ""; // what the choices were made of

// --- the screen ---

async function takeFile(file) {
  if (!file) return;
  if (!TYPES.includes(file.type)) return announce("That is no PNG or JPEG file.");
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    return announce("That image cannot be read.");
  }
  const dataUrl = await asDataUrl(file);
  if (screen) URL.revokeObjectURL(screen.url);
  screen = { url, dataUrl, width: image.naturalWidth, height: image.naturalHeight };
  at("preview-image").src = url;
  at("preview").hidden = false;
  at("drop-hint").hidden = true;
  at("file-facts").textContent =
    `${screen.width}×${screen.height}, ${Math.ceil(file.size / 1024)} KB; drop or paste another to replace it`;
  announce(`Screen of ${screen.width} by ${screen.height} pixels taken.`);
}

function asDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function forget() {
  running?.abort();
  running = null;
  at("cancel").disabled = true;
  if (screen) URL.revokeObjectURL(screen.url);
  screen = null;
  at("ask").reset();
  at("preview-image").removeAttribute("src");
  at("preview").hidden = true;
  at("drop-hint").hidden = false;
  at("file-facts").textContent = "PNG or JPEG";
  at("cards").replaceChildren();
  at("empty").hidden = false;
  announce("No answer yet.");
}

at("file").addEventListener("change", (event) => takeFile(event.target.files[0]));

document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  takeFile(file);
});

// The whole window takes a drop: a file that misses the frame must not replace the page.
for (const kind of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") takeFile(event.dataTransfer.files[0]);
  });
}

// --- the choices ---

function fillChoices({ experts, router }) {
  const offer = JSON.stringify([experts, router.mode]);
  if (offer === offered) return; // a list that somebody has open must not change under them
  offered = offer;
  const mode = router.mode ? ` (${router.mode})` : "";
  const groups = [
    ["Router", [["{}", `router default${mode}`], ...["soft", "top1", "top2"].map((one) => [JSON.stringify({ mode: one }), `router, ${one}`])]],
    ["Manual override", experts.map(({ name, label }) => [JSON.stringify({ adapter: name }), label === null ? name : `${name} (label ${label})`])],
    ["No expert", [[JSON.stringify({ base_only: true }), "base only"]]],
  ];
  for (const id of ["choice-a", "choice-b"]) {
    const select = at(id);
    const chosen = select.value;
    const made = groups.map(([label, options]) => {
      const group = document.createElement("optgroup");
      group.label = label;
      group.append(...options.map(([value, text]) => new Option(text, value)));
      return group;
    });
    select.replaceChildren(...(id === "choice-b" ? [new Option("nothing", ""), ...made] : made));
    if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
  }
}

async function connect() {
  const chip = at("serving");
  try {
    const facts = await getJson("inspect/server");
    const { router } = facts;
    chip.textContent = router.serving ? "serving" : `not serving: ${router.not_serving_reason}`;
    chip.className = `chip ${router.serving ? "good" : "bad"}`;
    setExperts(facts.experts.map((one) => one.name));
    fillChoices(facts);
    const known = [
      ["base", facts.model.slice(0, 12)],
      ["on", `${facts.device} ${facts.dtype}`],
      ["router", router.version.slice(0, 12)],
      ["temperature", router.temperature.toFixed(2)],
      ["experts", String(facts.experts.length)],
    ];
    at("server").replaceChildren(chip, ...known.map(([name, value]) => fact(name, value)));
  } catch (error) {
    chip.textContent = error instanceof BridgeFailure ? error.reason : "failed";
    chip.className = "chip bad";
  }
}

function fact(name, value) {
  const made = document.createElement("span");
  const label = document.createElement("span");
  label.className = "soft";
  label.textContent = `${name} `;
  made.append(label, value);
  return made;
}

// --- asking ---

async function run() {
  const prompt = at("prompt").value;
  if (!screen) return complain("Drop, paste or choose a screen first.", at("file"));
  if (!prompt.trim()) return complain("Write a prompt first.", at("prompt"));
  running?.abort();
  const mine = (running = new AbortController());
  const selects = [at("choice-a"), at("choice-b")].filter((select) => select.value !== "");
  const cards = selects.map((select, index) => {
    return new Card("AB"[index], select.selectedOptions[0].textContent, screen);
  });
  at("empty").hidden = true;
  at("cards").replaceChildren(...cards.map((card) => card.element));
  at("cards").classList.toggle("two", cards.length > 1);
  at("cancel").disabled = false;
  announce("Running.");
  const question = { image_b64: screen.dataUrl, prompt };
  const choices = selects.map((select) => JSON.parse(select.value));
  // One after the other: at the same time each would show the other's load in its timings.
  for (const [index, card] of cards.entries()) {
    await follow(card, { ...question, ...choices[index] }, mine);
  }
  if (running !== mine) return;
  running = null;
  at("cancel").disabled = true;
  announce(mine.signal.aborted ? "Cancelled." : verdict(cards));
}

async function follow(card, question, controller) {
  try {
    for await (const event of inspect(question, controller.signal)) card.take(event);
  } catch (error) {
    if (error.name === "AbortError") card.showError("Cancelled.");
    else if (error instanceof BridgeFailure) card.showError(`${error.message} (${error.reason})`);
    else {
      card.showError("The page failed; the browser's console has the place.");
      console.error(error);
    }
  }
}

function verdict(cards) {
  const answered = cards.filter((card) => card.answer);
  if (answered.length < cards.length) return "There is no answer; the card says why.";
  if (cards.length === 1) return cards[0].summary();
  const same = cards[0].answer.text === cards[1].answer.text;
  return `${same ? "Same answer." : "Different answers."} ${cards.map((card) => card.summary()).join(" ")}`;
}

function announce(text) {
  at("announce").textContent = text;
}

function complain(text, field) {
  announce(text);
  field.focus();
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
at("ask").noValidate = true; // the page says what is missing where everybody hears it
at("cancel").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", forget);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  if (event.key === "Escape") running?.abort();
});

connect();
setInterval(() => document.hidden || connect(), REFRESH_MS);
new Live();
