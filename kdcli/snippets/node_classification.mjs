// node run_node.mjs "A text." ["The text that belongs to it."]   (npm install --ignore-scripts @huggingface/transformers@4.3.1)
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as transformers from '@huggingface/transformers';
import { classify } from './student.mjs';

const MODEL = 'model_quantized.onnx';

const folder = dirname(fileURLToPath(import.meta.url));
const dtype = MODEL === 'model.onnx' ? 'fp32' : 'q8';
transformers.env.allowRemoteModels = false;
const tokenizer = await transformers.AutoTokenizer.from_pretrained(folder);
const model = await transformers.AutoModelForSequenceClassification.from_pretrained(folder, { dtype });
const answers = await classify(transformers, tokenizer, model, ...process.argv.slice(2));
for (const { label, probability } of answers) console.log(probability.toFixed(4), label);
