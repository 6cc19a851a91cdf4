// The last latencies as a small line. Its height goes from 0 to the longest of them.

const LAST = 40;
const [WIDTH, HEIGHT] = [96, 24]; // of the viewBox

export class Sparkline {
  #line;
  #title;
  #times = [];

  constructor(svg) {
    this.#line = svg.querySelector("polyline");
    this.#title = svg.querySelector("title");
  }

  add(milliseconds) {
    this.#times = [...this.#times, milliseconds].slice(-LAST);
    const longest = Math.max(...this.#times);
    const points = this.#times.map((time, i) => {
      const x = (i * WIDTH) / (LAST - 1);
      return `${x.toFixed(1)},${(HEIGHT - 1 - (time / longest) * (HEIGHT - 2)).toFixed(1)}`;
    });
    this.#line.setAttribute("points", points.join(" "));
    this.#title.textContent = `The last ${this.#times.length} pictures took up to ${longest.toFixed(0)} ms`;
  }
}
