// Every change requests a picture over the live connection. The newest request wins, and older frames are never shown.

import { Drawing } from "./drawing.js";
import { LiveConnection, listModels } from "./live.js";
import { Sparkline } from "./sparkline.js";

const $ = (id) => document.getElementById(id);
const HISTORY = 40;
const SETTLED_MS = 700; // from the last change until its picture enters the history

const drawing = new Drawing($("canvas"), {
  overlay: $("mask"),
  colour: $("colour"),
  brush: $("brush"),
  masking,
  changed,
});
const sparkline = new Sparkline($("sparkline"));
const strengths = { drawing: 0.5, mask: 1 }; // of the slider, which shows one of them
const pending = new Map(); // frame -> { request, time }
let shown = { frame: 0 };
let model = "";
let settle = 0;
let masked = false; // as the slider knows it
let asked = {}; // the newest request, or that of a picture brought back from the history

const connection = new LiveConnection({ opened, closed, frame: show, error: fail });

function masking() {
  return document.querySelector("input[name=tool]:checked").value === "mask";
}

function starts() {
  return $("start").open && drawing.starts;
}

function blends() {
  return $("blending").open && Boolean($("second").value.trim());
}

function changed() {
  showMask();
  ask();
}

// Set the controls after a change of the drawing or its mask. The strength with a mask is another one than without.
function showMask() {
  if (masked !== drawing.mask.used) {
    strengths[masked ? "mask" : "drawing"] = $("strength").value;
    masked = drawing.mask.used;
    $("strength").value = strengths[masked ? "mask" : "drawing"];
    showStrength();
  }
  $("clear-mask").hidden = !masked;
  follow();
}

// With the mask brush, an otherwise empty canvas shows the newest picture until something is painted.
function follow() {
  if (!drawing.starts) drawing.underlay(masking() && $("picture").naturalWidth ? $("picture") : null);
}

function setSteps(steps) {
  document.querySelector(`input[name=steps][value="${steps}"]`).checked = true;
}

function readSteps() {
  return Number(document.querySelector("input[name=steps]:checked").value);
}

// One step starts from noise alone. The hint stays while it tells why there are two.
function raiseSteps() {
  const raised = starts() && readSteps() === 1;
  if (raised) setSteps(2);
  if (raised || !starts() || readSteps() !== 2) $("hint").hidden = !raised;
}

function readRequest() {
  const request = {
    prompt: $("prompt").value,
    seed: Number($("seed").value) || 0,
    steps: readSteps(),
    size: $("size").value,
  };
  if (blends()) {
    request.second_prompt = $("second").value;
    request.blend = Number($("blend").value);
  }
  if (starts()) {
    request.image = drawing.base64();
    if (drawing.mask.used) request.mask = drawing.mask.base64();
    request.strength = Math.max(Number($("strength").value), 1 / request.steps); // a lower strength would run no step
  }
  return request;
}

function ask() {
  raiseSteps();
  if (!$("prompt").value.trim() && !starts()) return;
  const request = (asked = readRequest());
  const frame = connection.send(request);
  if (frame) pending.set(frame, { request, time: performance.now() });
}

function show(head, blob) {
  if (head.frame <= shown.frame) return;
  const { request, time } = pending.get(head.frame);
  for (const frame of pending.keys()) if (frame <= head.frame) pending.delete(frame);
  const latency = performance.now() - time;
  sparkline.add(latency);
  shown = { frame: head.frame, request, head, url: URL.createObjectURL(blob), latency };
  paint(shown);
  clearTimeout(settle);
  settle = setTimeout(remember, SETTLED_MS, shown);
}

function paint(picture) {
  const { request, head, url, latency } = picture;
  const times = head.sdturbo.timings_ms;
  const old = $("picture").src;
  $("picture").src = url;
  $("picture").alt = wording(request) || "A picture drawn from the canvas";
  if (old && old !== url && !remembered(old)) URL.revokeObjectURL(old);
  $("latency").textContent = `${latency.toFixed(0)} ms`;
  $("detail").textContent =
    `engine ${times.total.toFixed(0)} ms · seed ${head.seed} · ${request.steps} step${request.steps > 1 ? "s" : ""}`;
  const dropped = head.sdturbo.dropped;
  showNote(dropped ? `The model sees 77 tokens. It did not see: “${dropped.trim()}”` : "");
  $("download").hidden = false;
  if (!$("lock").checked) $("seed").value = randomSeed();
}

function wording(request) {
  return [request.prompt, request.second_prompt].filter(Boolean).join(" + ");
}

function remembered(url) {
  return [...$("history").querySelectorAll("img")].some((image) => image.src === url);
}

function remember(picture) {
  if (picture !== shown) return;
  const item = document.createElement("li");
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.title = `${wording(picture.request)} · seed ${picture.head.seed}`;
  image.src = picture.url;
  image.alt = wording(picture.request) || "drawing";
  button.append(image);
  button.addEventListener("click", () => bring(picture));
  item.append(button);
  $("history").prepend(item);
  while ($("history").children.length > HISTORY) {
    const last = $("history").lastElementChild;
    const { src } = last.querySelector("img");
    last.remove();
    if (src !== $("picture").src) URL.revokeObjectURL(src);
  }
}

function bring(picture) {
  const { request } = picture;
  asked = request;
  $("prompt").value = request.prompt;
  $("second").value = request.second_prompt ?? "";
  if (request.second_prompt) {
    $("blending").open = true;
    $("blend").value = request.blend;
    showBlend();
  }
  $("size").value = request.size;
  showSize();
  $("seed").value = picture.head.seed;
  $("lock").checked = true;
  setSteps(request.steps);
  shown = { ...picture, frame: shown.frame };
  paint(shown);
}

// The shown picture is a JPEG for speed. The download is the same picture drawn again, as a PNG with its metadata.
async function download(event) {
  event.preventDefault();
  const { request, head } = shown;
  $("download").textContent = "…";
  try {
    const file = await connection.drawOnce({ ...request, seed: head.seed, output_format: "png" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `${request.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "drawing"}-${head.seed}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    showNote(error.message);
  } finally {
    $("download").textContent = "Download";
  }
}

function fail(error, frame) {
  pending.delete(frame);
  showNote(error.message);
}

function showNote(text) {
  $("note").textContent = text;
  $("note").hidden = !text;
}

function showState(text, ok) {
  $("state").textContent = text;
  $("state").dataset.ok = ok ? "yes" : "no";
}

function opened() {
  showState(model, true);
  pending.clear();
  shown = { ...shown, frame: 0 }; // a new connection counts from 1
  ask();
}

function closed() {
  showState("not connected, trying again…", false);
}

function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

function showBlend() {
  $("blend-value").value = Number($("blend").value).toFixed(2);
}

function offerSizes(sizes) {
  const old = $("size").value;
  $("size").replaceChildren(...sizes.map((size) => new Option(size.replace("x", " × "), size)));
  if (sizes.includes(old)) $("size").value = old;
  $("size-row").hidden = sizes.length === 1;
  showSize();
}

// Give picture, canvas and mask the shape of the chosen size.
function showSize() {
  const [width, height] = $("size").value.split("x").map(Number);
  document.documentElement.style.setProperty("--shape", `${width} / ${height}`);
  drawing.resize(width, height);
  follow();
}

function showStrength() {
  $("strength-value").value = Number($("strength").value).toFixed(2);
}

// Go on from the picture as it is. Nothing is drawn until something changes.
function take() {
  if (!$("picture").naturalWidth) return;
  drawing.take($("picture"));
  showMask();
}

function roll() {
  $("seed").value = randomSeed();
  ask();
}

async function connect() {
  try {
    const models = await listModels();
    $("key-row").hidden = true;
    showNote("");
    model = models[0].id;
    offerSizes(models[0].sizes);
    showState(model, true);
    if (/sd-turbo|stabilityai/i.test(model)) $("notice").textContent = "Powered by Stability AI";
    connection.open();
  } catch (error) {
    $("key-row").hidden = error.status !== 401;
    showState(error.status === 401 ? "an API key is needed" : "not connected, trying again…", false);
    if (error.status === 401) showNote(sessionStorage.key ? error.message : "");
    else setTimeout(connect, 2000);
  }
}

for (const id of ["prompt", "second", "seed"]) $(id).addEventListener("input", ask);
$("blend").addEventListener("input", () => {
  showBlend();
  if (blends()) ask();
});
$("blending").addEventListener("toggle", () => blends() !== Boolean(asked.second_prompt) && ask());
$("size").addEventListener("change", () => {
  showSize();
  ask();
});
for (const radio of document.querySelectorAll("input[name=steps]")) radio.addEventListener("change", ask);
for (const radio of document.querySelectorAll("input[name=tool]")) radio.addEventListener("change", follow);
$("picture").addEventListener("load", follow);
$("start").addEventListener("toggle", ask);
$("strength").addEventListener("input", () => {
  showStrength();
  ask();
});
$("dice").addEventListener("click", roll);
$("clear").addEventListener("click", () => drawing.clear());
$("clear-mask").addEventListener("click", () => drawing.clearMask());
$("take").addEventListener("click", take);
$("file").addEventListener("change", () => $("file").files[0] && drawing.load($("file").files[0]).catch((e) => showNote(e.message)));
$("canvas").addEventListener("bad-file", (event) => showNote(event.detail));
$("download").addEventListener("click", download);
$("download").href = "#";
$("key-ok").addEventListener("click", () => {
  sessionStorage.key = $("key").value;
  connect();
});
$("key").addEventListener("keydown", (event) => event.key === "Enter" && $("key-ok").click());
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => event.altKey && event.code === "KeyR" && (event.preventDefault(), roll()));
connect();
