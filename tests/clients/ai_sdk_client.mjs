// The Vercel AI SDK with @ai-sdk/openai-compatible: text, stream, object, tools, thoughts.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, key, model, packages] = process.argv.slice(2);
const from = createRequire(`${packages}/package.json`);
const load = (name) => import(pathToFileURL(from.resolve(name)).href);
const { generateText, streamText, generateObject, tool, stepCountIs } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

const provider = createOpenAICompatible({
  name: "aift",
  baseURL: `${url}/v1`,
  apiKey: key,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const chat = provider(model);
const question = "大阪の天気は？";
const plain = { model: chat, prompt: question, temperature: 0, maxOutputTokens: 60, maxRetries: 0 };

const whole = await generateText(plain);
assert.ok(whole.usage.outputTokens > 0);
const stream = streamText(plain);
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, whole.text);
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);

const town = z.object({ town: z.enum(["東京", "大阪"]) });
const held = await generateObject({ ...plain, schema: town, maxOutputTokens: 300 });
assert.ok(["東京", "大阪"].includes(held.object.town));

let asked = 0;
const weather = tool({
  description: "町の天気を調べます。",
  inputSchema: town,
  execute: async () => {
    asked += 1;
    return "晴れです。";
  },
});
const steps = await generateText({
  ...plain,
  tools: { weather },
  stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
  maxOutputTokens: 300,
});
assert.equal(asked, 1);
assert.equal(steps.steps.length, 2);

const thinking = {
  aift: { chat_template_kwargs: { enable_thinking: true }, thinking_token_budget: 6 },
};
const thought = await generateText({ ...plain, providerOptions: thinking });
assert.ok(thought.reasoningText.length > 0);
const thoughts = streamText({ ...plain, providerOptions: thinking });
let reasoning = "";
for await (const part of thoughts.fullStream)
  if (part.type === "reasoning-delta") reasoning += part.text;
assert.ok(reasoning.length > 0);

await assert.rejects(
  generateText({ ...plain, model: provider("another") }),
  (error) => error.statusCode === 404,
);
