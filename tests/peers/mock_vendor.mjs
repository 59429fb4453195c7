// Starts aimock with answers that a test can change while it runs.
//
//   node mock_vendor.mjs <path of aimock's dist/index.js>
//
// Prints one line {"url": ...} when it listens. Every line on stdin is a JSON list of rules that
// replaces the rules before; it is acknowledged with {"rules": <count>}. Ends when stdin is closed,
// so that it never outlives the process that started it.
//
// A rule: {contains?, model?, content?, usage?: [input, output], error?: {status, type, message, code?},
// retry_after?, latency_ms?: [least, most], times?}. The first rule that fits answers; `times` is how
// often it does so at most. "$ID" in content becomes what `id` (a regular expression) finds in the
// prompt.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { LLMock } = await import(pathToFileURL(process.argv[2]).href);
let rules = [];

const textOf = (content) =>
  typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("");
const promptOf = (request) =>
  textOf(request.messages.filter((message) => message.role === "user").at(-1)?.content);

function ruleFor(request, prompt) {
  const rule = rules.find(
    (candidate) =>
      candidate.times !== 0 &&
      (candidate.contains === undefined || prompt.includes(candidate.contains)) &&
      (candidate.model === undefined || request.model === candidate.model),
  );
  if (rule?.times !== undefined) rule.times -= 1;
  return rule ?? { error: { status: 404, type: "not_found_error", message: "no rule answers this prompt" } };
}

function responseOf(rule, prompt) {
  if (rule.error) {
    const { status, type, message, code } = rule.error;
    return { error: { message, type, code }, status, retryAfter: rule.retry_after };
  }
  const id = rule.id ? (prompt.match(new RegExp(rule.id))?.[0] ?? "") : "";
  const content = rule.content.replaceAll("$ID", id);
  const [input, output] = rule.usage ?? [Math.ceil(prompt.length / 4), Math.ceil(content.length / 4)];
  const usage = { input_tokens: input, output_tokens: output, prompt_tokens: input, completion_tokens: output };
  return { content, usage };
}

const mock = new LLMock({
  host: "127.0.0.1",
  port: 0,
  journalMaxEntries: 0, // the same as --journal-max 0: nothing is ever dropped
  fixtureCountsMaxTestIds: 0,
  logLevel: "silent",
});
mock.on({ endpoint: "chat" }, async (request) => {
  const prompt = promptOf(request);
  const rule = ruleFor(request, prompt);
  const [least, most] = rule.latency_ms ?? [0, 0];
  const latency = least + Math.random() * (most - least);
  if (latency > 0) await new Promise((resolve) => setTimeout(resolve, latency));
  return responseOf(rule, prompt);
});
await mock.start();
console.log(JSON.stringify({ url: mock.url }));

for await (const line of createInterface({ input: process.stdin })) {
  rules = JSON.parse(line);
  console.log(JSON.stringify({ rules: rules.length }));
}
await mock.stop();
process.exit(0);
