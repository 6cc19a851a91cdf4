// A canvas to draw on with mouse, pen, finger or arrow keys. It also takes image files. Over it lies a mask, painted alike.

import { cover, resize } from "./cover.js";
import { Mask } from "./mask.js";

const STEP = 16; // pixels per arrow key
const LEAST = 512; // pixels of the longer side, so that brushes are fine enough for any size of pictures

export class Drawing {
  used = false; // whether the canvas holds a drawing or an image
  mask;
  #canvas;
  #context;
  #options;
  #last = null;
  #pen = { x: 256, y: 256 };
  #file = "";

  constructor(canvas, options) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    this.#options = options;
    this.mask = new Mask(options.overlay);
    this.#fill();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#last = this.#place(event);
      this.#line(this.#last);
    });
    canvas.addEventListener("pointermove", (event) => this.#last && this.#line(this.#place(event)));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.#last = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("dragover", (event) => {
      event.preventDefault();
      canvas.classList.add("over");
    });
    canvas.addEventListener("dragleave", () => canvas.classList.remove("over"));
    canvas.addEventListener("drop", (event) => {
      event.preventDefault();
      canvas.classList.remove("over");
      const file = event.dataTransfer.files[0];
      if (file) this.load(file).catch((e) => canvas.dispatchEvent(new CustomEvent("bad-file", { detail: e.message })));
    });
  }

  // Whether pictures start from the canvas.
  get starts() {
    return this.used || this.mask.used;
  }

  base64() {
    this.#file ||= this.#canvas.toDataURL("image/jpeg", 0.92);
    return this.#file;
  }

  clear() {
    this.#fill();
    this.used = false;
    this.mask.clear();
    this.#options.changed();
  }

  clearMask() {
    this.mask.clear();
    this.#options.changed();
  }

  // Take the shape of pictures of another size. The drawing and its mask stay, and cover it.
  resize(pictureWidth, pictureHeight) {
    const scale = Math.max(1, LEAST / Math.max(pictureWidth, pictureHeight));
    const [width, height] = [Math.round(pictureWidth * scale), Math.round(pictureHeight * scale)];
    if (width === this.#canvas.width && height === this.#canvas.height) return;
    resize(this.#context, width, height);
    this.mask.resize(width, height);
    this.#file = "";
    this.#pen = { x: width / 2, y: height / 2 };
  }

  // Put a picture on the canvas, to go on from it.
  take(image) {
    this.#cover(image, image.naturalWidth, image.naturalHeight);
    this.used = true;
    this.mask.clear();
  }

  // Show a picture under a mask to come, or an empty canvas. Pictures start from it once there is a mask.
  underlay(image) {
    if (image) this.#cover(image, image.naturalWidth, image.naturalHeight);
    else this.#fill();
  }

  async load(file) {
    let image;
    try {
      image = await createImageBitmap(file);
    } catch {
      throw new Error(`${file.name} is not an image that this browser can read.`);
    }
    this.#cover(image, image.width, image.height);
    this.mask.clear();
    this.#changed();
  }

  #cover(image, imageWidth, imageHeight) {
    this.#fill();
    cover(this.#context, image, imageWidth, imageHeight);
  }

  #fill() {
    this.#file = "";
    this.#context.fillStyle = "#fff";
    this.#context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#canvas.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  }

  #line(to) {
    const from = this.#last ?? to;
    const stroke = (context, style) => {
      context.strokeStyle = style;
      context.lineWidth = Number(this.#options.brush.value);
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(from.x, from.y);
      context.lineTo(to.x, to.y);
      context.stroke();
    };
    if (this.#last) this.#last = to;
    this.#pen = to;
    if (this.#options.masking()) {
      this.mask.line(stroke);
      this.#options.changed();
    } else {
      stroke(this.#context, this.#options.colour.value);
      this.#changed();
    }
  }

  // Arrow keys move the pen; with Shift they draw.
  #key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const { width, height } = this.#canvas;
    const clamp = (value, most) => Math.min(Math.max(value, 0), most);
    const to = { x: clamp(this.#pen.x + move[0] * STEP, width), y: clamp(this.#pen.y + move[1] * STEP, height) };
    if (event.shiftKey) {
      this.#last = this.#pen;
      this.#line(to);
      this.#last = null;
    }
    this.#pen = to;
  }

  #changed() {
    this.used = true;
    this.#file = "";
    this.#options.changed();
  }
}
