// Images on canvases of another shape: in the middle, as large as covers all of the canvas, cut at the sides.

export function cover(context, image, imageWidth, imageHeight) {
  const { width, height } = context.canvas;
  const scale = Math.max(width / imageWidth, height / imageHeight);
  const [w, h] = [imageWidth * scale, imageHeight * scale];
  context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
}

// Give a canvas another size. Its content stays, and covers it.
export function resize(context, width, height) {
  const old = document.createElement("canvas");
  [old.width, old.height] = [context.canvas.width, context.canvas.height];
  old.getContext("2d").drawImage(context.canvas, 0, 0);
  [context.canvas.width, context.canvas.height] = [width, height];
  cover(context, old, old.width, old.height);
}
