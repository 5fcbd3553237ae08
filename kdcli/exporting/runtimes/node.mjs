// Runs a student's file with transformers.js, for exporting/runtimes/node.py: one line of JSON in, one line out.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
console.log = console.info = console.error; // stdout is for the answers alone

// bytes that this process held at most since the last call of `rest`
const rest = () => {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {} // no Linux: the peak is that since the start
};
const peak = () => {
  try {
    return 1024 * Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
  } catch {
    return 1024 * process.resourceUsage().maxRSS;
  }
};

async function main([packages, folder, dtype, threads]) {
  const transformers = createRequire(`${packages}/`)('@huggingface/transformers');
  // kdcli's own: one that lies beside a model from elsewhere is code
  const own = readFileSync(new URL('../targets/page/student.mjs', import.meta.url), 'utf8').replace('%MOST%', '0');
  const { encode } = await import(`data:text/javascript,${encodeURIComponent(own)}`);
  transformers.env.allowRemoteModels = false;
  rest();
  const held = process.memoryUsage().rss;
  const tokenizer = await transformers.AutoTokenizer.from_pretrained(folder);
  const session_options = { intraOpNumThreads: Number(threads), interOpNumThreads: 1 };
  const model = await transformers.AutoModelForSequenceClassification.from_pretrained(folder, { dtype, session_options });
  say({ held, names: model.sessions.model.inputNames });

  const told = {
    async answer({ inputs, shape }) {
      const tensors = Object.entries(inputs).map(([name, values]) => [
        name,
        new transformers.Tensor('int64', BigInt64Array.from(values, BigInt), shape),
      ]);
      const { logits } = await model(Object.fromEntries(tensors));
      const { user, system } = process.cpuUsage();
      return { logits: Array.from(logits.data), shape: logits.dims, computed: (user + system) / 1e6 };
    },
    encode: ({ rows, most }) => rows.map(([text, pair = null]) => encode(tokenizer, text, pair, most)),
    peak,
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const { what, ...how } = JSON.parse(line);
    say(await told[what](how));
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
