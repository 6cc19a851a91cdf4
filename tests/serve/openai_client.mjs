// OpenAI's JavaScript client with every field at a value that changes nothing. Arguments: its directory, the server, an image.

import fs from "node:fs";
import { createRequire } from "node:module";

const [directory, server, file] = process.argv.slice(2);
const { OpenAI, toFile } = createRequire(directory + "/")("openai");
const client = new OpenAI({ baseURL: server + "/v1", apiKey: "unused", maxRetries: 0 });
const image = () => toFile(fs.readFileSync(file), "start.png", { type: "image/png" });

const fields = {
  background: "auto", frame_count: 9, frame_duration_ms: 200, n: 1, output_compression: 100, output_format: "png",
  partial_images: 0, quality: "auto", response_format: "b64_json", safety_identifier: "x", size: "auto", stream: false, user: "x",
};
const nulls = { complexity: null, model: null, style: null, svg: null };
const words = { background: "null", model: "null", n: "null", quality: "null", size: "null", user: "null" };

const seed = 7;
const prompt = "a fox";
const pictures = {
  plain: await client.images.generate({ prompt, seed }),
  fields: await client.images.generate({ prompt, seed, moderation: "auto", ...fields, ...nulls }),
  edit: await client.images.edit({ prompt, seed, image: await image() }),
  edit_fields: await client.images.edit({ prompt, seed, image: [await image()], input_fidelity: "low", ...fields }),
  edit_words: await client.images.edit({ prompt, seed, image: await image(), ...words }),
  mask: await client.images.edit({ prompt, seed, image: await image(), mask: await image() }),
};
console.log(JSON.stringify(Object.fromEntries(Object.entries(pictures).map(([name, answer]) => [name, answer.data]))));
