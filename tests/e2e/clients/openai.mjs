// openai-node against a gateway: node openai.mjs BASE_URL KEY MODEL. Prints one JSON object of what it saw.
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const ask = (n) => [{ role: "user", content: `say number-${n}` }];

const whole = await client.chat.completions.create({ model, messages: ask(0) });
const stream = await client.chat.completions.create({
  model,
  messages: ask(1),
  stream: true,
  stream_options: { include_usage: true },
});
let text = "";
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const together = await Promise.all(
  Array.from({ length: 50 }, async (_, n) => {
    if (n % 2) return (await client.chat.completions.create({ model, messages: ask(n) })).choices[0].message.content;
    let answer = "";
    for await (const chunk of await client.chat.completions.create({ model, messages: ask(n), stream: true }))
      answer += chunk.choices[0]?.delta?.content ?? "";
    return answer;
  }),
);
let refusal = null;
try {
  await client.chat.completions.create({ model: "nope", messages: ask(0) });
} catch (error) {
  refusal = { status: error.status, code: error.code };
}
console.log(JSON.stringify({ whole: whole.choices[0].message.content, text, usage, together, refusal }));
