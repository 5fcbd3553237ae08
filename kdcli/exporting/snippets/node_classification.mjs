// node run_node.mjs "A text." ["Its second text."]   (npm install --ignore-scripts @huggingface/transformers@4.3.1)
import * as transformers from '@huggingface/transformers';
import { classify } from './student.mjs';

process.argv.length > 2 || process.exit(console.error('usage: node run_node.mjs "A text." ["The text that belongs to it."]') ?? 2);

const MODEL = 'model_quantized.onnx';

const dtype = MODEL === 'model.onnx' ? 'fp32' : 'q8';
transformers.env.allowRemoteModels = false;
const tokenizer = await transformers.AutoTokenizer.from_pretrained(import.meta.dirname);
const model = await transformers.AutoModelForSequenceClassification.from_pretrained(import.meta.dirname, { dtype });
const predictions = await classify(transformers, tokenizer, model, ...process.argv.slice(2));
for (const { label, probability } of predictions) console.log(probability.toFixed(4), label);
