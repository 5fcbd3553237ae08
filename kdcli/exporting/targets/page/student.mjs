// Runs the student. The caller passes @huggingface/transformers, which a page and Node load from different places.

export const MOST = %MOST%; // the maximum number of tokens that the student reads, with special tokens
export const DTYPE = '%DTYPE%'; // the smaller of the files in onnx/

// Returns the inputs of a text, or of a text and its pair. The tokenizer's own truncation also drops special tokens, which the
// student always had in training: here only the tokens of the texts are dropped, those of the longer text first.
export function encode(tokenizer, text, pair = null, most = MOST) {
  const full = tokenizer(text, { text_pair: pair, return_tensor: false });
  const ids = full.input_ids;
  if (ids.length <= most) return full;
  const texts = pair === null ? [text] : [text, pair];
  const own = texts.map((each) => tokenizer(each, { add_special_tokens: false, return_tensor: false }).input_ids);
  const [one, other = 0] = own.map((tokens) => tokens.length);
  const total = most - (ids.length - one - other);
  const less = Math.min(one, other, Math.floor(total / 2));
  const lengths = one > other ? [total - less, less] : [less, total - less];
  const cut = new Set();
  let from = 0;
  own.forEach((tokens, which) => {
    while (tokens.some((token, at) => ids[from + at] !== token)) if (++from > ids.length) throw Error('a text is tokenized in another way alone than in the pair');
    const left = tokenizer.config.truncation_side === 'left';
    const start = left ? from : from + lengths[which];
    for (let at = 0; at < tokens.length - lengths[which]; at++) cut.add(start + at);
    from += tokens.length;
  });
  return Object.fromEntries(Object.entries(full).map(([name, values]) => [name, values.filter((_, at) => !cut.has(at))]));
}

// Returns labels and their probabilities, the most likely first.
export async function classify({ Tensor }, tokenizer, model, text, pair = null) {
  const inputs = Object.entries(encode(tokenizer, text, pair)).map(([name, values]) => [
    name,
    new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]),
  ]);
  const logits = Array.from((await model(Object.fromEntries(inputs))).logits.data);
  const weights = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  const sum = weights.reduce((total, weight) => total + weight);
  return weights
    .map((weight, index) => ({ label: model.config.id2label[index], probability: weight / sum }))
    .sort((a, b) => b.probability - a.probability);
}
