// A student's answers. What it takes of @huggingface/transformers is handed in: a page has it from elsewhere than Node.

export const MOST = %MOST%; // tokens that the student reads, special ones among them
export const DTYPE = '%DTYPE%'; // the smaller one of the files in onnx/

// The inputs of a text, or of a text and its pair. The tokenizer's own truncation cuts special tokens off too, which the
// student never was without: here only the texts' own tokens are cut, of the longer text first.
export function encode(tokenizer, text, pair = null, most = MOST) {
  const whole = tokenizer(text, { text_pair: pair, return_tensor: false });
  const ids = whole.input_ids;
  if (ids.length <= most) return whole;
  const texts = pair === null ? [text] : [text, pair];
  const own = texts.map((each) => tokenizer(each, { add_special_tokens: false, return_tensor: false }).input_ids);
  const [one, other = 0] = own.map((tokens) => tokens.length);
  const room = most - (ids.length - one - other);
  const less = Math.min(one, other, Math.floor(room / 2));
  const kept = one > other ? [room - less, less] : [less, room - less];
  const cut = new Set();
  let from = 0;
  own.forEach((tokens, which) => {
    while (tokens.some((token, at) => ids[from + at] !== token)) if (++from > ids.length) throw Error('a text is cut otherwise alone');
    const left = tokenizer.config.truncation_side === 'left';
    const start = left ? from : from + kept[which];
    for (let at = 0; at < tokens.length - kept[which]; at++) cut.add(start + at);
    from += tokens.length;
  });
  return Object.fromEntries(Object.entries(whole).map(([name, values]) => [name, values.filter((_, at) => !cut.has(at))]));
}

// Labels and their probabilities, the likeliest first.
export async function classify({ Tensor }, tokenizer, model, text, pair = null) {
  const inputs = Object.entries(encode(tokenizer, text, pair)).map(([name, values]) => [
    name,
    new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]),
  ]);
  const logits = Array.from((await model(Object.fromEntries(inputs))).logits.data);
  const weights = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  const sum = weights.reduce((total, weight) => total + weight);
  return weights
    .map((weight, number) => ({ label: model.config.id2label[number], probability: weight / sum }))
    .sort((a, b) => b.probability - a.probability);
}
