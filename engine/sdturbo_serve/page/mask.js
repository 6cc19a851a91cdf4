// The part of a picture that is drawn anew, as strokes on a canvas over it.

export class Mask {
  used = false;
  #canvas;
  #context;
  #file = "";

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
  }

  line(stroke) {
    stroke(this.#context, "#e03131");
    this.used = true;
    this.#file = "";
  }

  clear() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.used = false;
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
