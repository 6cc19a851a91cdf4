// A live connection to sdturbo-serve (/v1/live), and the list of its models. Knows nothing about the page.

const base = new URL("./v1/", document.baseURI);
const key = () => sessionStorage.key || "";

export async function listModels() {
  const answer = await fetch(new URL("models", base), { headers: key() ? { Authorization: `Bearer ${key()}` } : {} });
  if (answer.ok) return (await answer.json()).data;
  const { error } = await answer.json().catch(() => ({ error: { message: answer.statusText } }));
  throw Object.assign(new Error(error.message), { status: answer.status });
}

function openSocket() {
  const url = new URL("live", base);
  url.protocol = url.protocol.replace("http", "ws");
  const protocols = ["sdturbo.live"];
  if (key()) {
    const bytes = String.fromCharCode(...new TextEncoder().encode(key()));
    protocols.push(`sdturbo.key.${btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`);
  }
  return new WebSocket(url, protocols);
}

export class LiveConnection {
  #handlers;
  #socket = null;
  #sent = 0;
  #pause = 500; // ms before the next attempt

  constructor(handlers) {
    this.#handlers = handlers;
  }

  // Open, and after a break open again, at growing intervals.
  open() {
    this.#drop();
    this.#socket = openSocket();
    this.#sent = 0;
    let head = null;
    this.#socket.onopen = () => {
      this.#pause = 500;
      this.#handlers.opened();
    };
    this.#socket.onmessage = ({ data }) => {
      if (data instanceof Blob) return this.#handlers.frame(head, data);
      const message = JSON.parse(data);
      if (message.type === "frame") head = message;
      else this.#handlers.error(message.error, message.frame);
    };
    this.#socket.onclose = () => {
      this.#handlers.closed();
      this.#pause = Math.min(this.#pause * 2, 8000);
      setTimeout(() => this.open(), this.#pause);
    };
  }

  // Close the earlier connection, and ignore its late frames, because their numbers are its own.
  #drop() {
    if (!this.#socket) return;
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close();
  }

  // The number of the frame that will answer, or 0 without a connection.
  send(request) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return 0;
    this.#socket.send(JSON.stringify(request));
    this.#sent += 1;
    return this.#sent;
  }

  // One picture as a Blob, on a connection of its own, so that no newer request replaces it.
  drawOnce(request) {
    return new Promise((resolve, reject) => {
      const single = openSocket();
      single.onopen = () => single.send(JSON.stringify(request));
      single.onmessage = ({ data }) => {
        if (data instanceof Blob) {
          resolve(new Blob([data], { type: "image/png" }));
          single.close();
        } else if (JSON.parse(data).type === "error") {
          reject(new Error(JSON.parse(data).error.message));
          single.close();
        }
      };
      single.onclose = () => reject(new Error("The server closed the connection."));
    });
  }
}
