// Every change asks for a picture over the live stream; the newest request wins, older frames are never shown.

import { Drawing } from "./drawing.js";
import { Stream, listModels } from "./stream.js";

const $ = (id) => document.getElementById(id);
const HISTORY = 40;
const SETTLED_MS = 700; // after the last change a picture enters the history

const drawing = new Drawing($("canvas"), { colour: $("colour"), brush: $("brush"), changed: ask });
const asked = new Map(); // frame -> { request, time }
let shown = { frame: 0 };
let settle = 0;

const stream = new Stream({ opened, closed, frame: show, error: fail });

function request() {
  const wanted = {
    prompt: $("prompt").value,
    seed: Number($("seed").value) || 0,
    steps: Number(document.querySelector("input[name=steps]:checked").value),
  };
  if ($("start").open && drawing.used) {
    wanted.image = drawing.base64();
    wanted.strength = Math.max(Number($("strength").value), 1 / wanted.steps); // less would run no step
  }
  return wanted;
}

function ask() {
  if (!$("prompt").value.trim() && !(drawing.used && $("start").open)) return;
  const wanted = request();
  const frame = stream.send(wanted);
  if (frame) asked.set(frame, { request: wanted, time: performance.now() });
}

function show(head, blob) {
  if (head.frame <= shown.frame) return;
  const { request: wanted, time } = asked.get(head.frame);
  for (const frame of asked.keys()) if (frame <= head.frame) asked.delete(frame);
  const latency = performance.now() - time;
  shown = { frame: head.frame, wanted, head, url: URL.createObjectURL(blob), latency };
  paint(shown);
  clearTimeout(settle);
  settle = setTimeout(remember, SETTLED_MS, shown);
}

function paint(picture) {
  const { wanted, head, url, latency } = picture;
  const times = head.sdturbo.timings_ms;
  const old = $("picture").src;
  $("picture").src = url;
  $("picture").alt = wanted.prompt || "A picture drawn from the canvas";
  if (old && old !== url && !remembered(old)) URL.revokeObjectURL(old);
  $("latency").textContent = `${latency.toFixed(0)} ms`;
  $("detail").textContent =
    `engine ${times.total.toFixed(0)} ms · seed ${head.seed} · ${wanted.steps} step${wanted.steps > 1 ? "s" : ""}`;
  const dropped = head.sdturbo.dropped;
  tell(dropped ? `The model sees 77 tokens; it did not see: “${dropped.trim()}”` : "");
  $("download").hidden = false;
  if (!$("lock").checked) $("seed").value = dice();
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
  button.title = `${picture.wanted.prompt} · seed ${picture.head.seed}`;
  image.src = picture.url;
  image.alt = picture.wanted.prompt || "drawing";
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
  $("prompt").value = picture.wanted.prompt;
  $("seed").value = picture.head.seed;
  $("lock").checked = true;
  document.querySelector(`input[name=steps][value="${picture.wanted.steps}"]`).checked = true;
  shown = { ...picture, frame: shown.frame };
  paint(shown);
}

// The shown picture is a JPEG for speed; the download is drawn again, exactly, as a PNG that carries its metadata.
async function download(event) {
  event.preventDefault();
  const { wanted, head } = shown;
  $("download").textContent = "…";
  try {
    const file = await stream.once({ ...wanted, seed: head.seed, output_format: "png" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `${wanted.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "drawing"}-${head.seed}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    tell(error.message);
  } finally {
    $("download").textContent = "Download";
  }
}

function fail(error, frame) {
  asked.delete(frame);
  tell(error.message);
}

function tell(text) {
  $("note").textContent = text;
  $("note").hidden = !text;
}

function state(text, ok) {
  $("state").textContent = text;
  $("state").dataset.ok = ok ? "yes" : "no";
}

function opened() {
  asked.clear();
  shown = { ...shown, frame: 0 }; // a new stream counts from 1
  ask();
}

function closed() {
  state("not connected; trying again…", false);
}

function dice() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

function roll() {
  $("seed").value = dice();
  ask();
}

async function connect() {
  try {
    const models = await listModels();
    $("key-row").hidden = true;
    tell("");
    state(`${models[0].id}`, true);
    if (/sd-turbo|stabilityai/i.test(models[0].id)) $("notice").textContent = "Powered by Stability AI";
    stream.open();
  } catch (error) {
    $("key-row").hidden = error.status !== 401;
    state(error.status === 401 ? "an API key is needed" : "not connected; trying again…", false);
    if (error.status === 401) tell(sessionStorage.key ? error.message : "");
    else setTimeout(connect, 2000);
  }
}

for (const id of ["prompt", "seed"]) $(id).addEventListener("input", ask);
for (const one of document.querySelectorAll("input[name=steps]")) one.addEventListener("change", ask);
$("start").addEventListener("toggle", ask);
$("strength").addEventListener("input", () => {
  $("strength-value").value = Number($("strength").value).toFixed(2);
  ask();
});
$("dice").addEventListener("click", roll);
$("clear").addEventListener("click", () => drawing.clear());
$("file").addEventListener("change", () => $("file").files[0] && drawing.load($("file").files[0]).catch((e) => tell(e.message)));
$("canvas").addEventListener("bad-file", (event) => tell(event.detail));
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
