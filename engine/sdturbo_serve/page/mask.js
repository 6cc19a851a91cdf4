// The part of a picture that is drawn anew, as strokes on a canvas over it.

import { resize } from "./cover.js";

export class Mask {
  used = false;
  #canvas;
  #context;
  #hatching;
  #file = "";

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    this.#hatching = hatching(this.#context);
  }

  line(stroke) {
    stroke(this.#context, this.#hatching);
    this.used = true;
    this.#file = "";
  }

  clear() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.used = false;
    this.#file = "";
  }

  resize(width, height) {
    resize(this.#context, width, height);
    this.#file = "";
  }

  // A PNG as the server and OpenAI read masks: what was painted is transparent.
  base64() {
    this.#file ||= this.#inverse().toDataURL("image/png");
    return this.#file;
  }

  #inverse() {
    const inverse = document.createElement("canvas");
    [inverse.width, inverse.height] = [this.#canvas.width, this.#canvas.height];
    const context = inverse.getContext("2d");
    context.fillRect(0, 0, inverse.width, inverse.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(this.#canvas, 0, 0);
    return inverse;
  }
}

// Red and white stripes, which stand out on any picture.
function hatching(context) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 16;
  const pen = tile.getContext("2d");
  pen.fillStyle = "#e03131";
  pen.fillRect(0, 0, 16, 16);
  pen.strokeStyle = "#fff";
  pen.lineWidth = 3;
  for (const x of [-8, 8]) {
    pen.moveTo(x - 8, 16 + 8);
    pen.lineTo(x + 24, -8);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}
