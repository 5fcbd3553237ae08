// Android: org.pytorch:executorch-android, of the version of executorch in export.json
// kdcli ran the model with ExecuTorch's Python build on a computer, and neither it nor this code on a phone.
// The ids are those of tokenizer.json of all words in one text, a space between two, which ai.djl.android:tokenizer-native reads; from 2 to MAX_LENGTH of them count.
// A word's label is that of its first id, by the positions of the ids in that text; the names of the labels are id2label in config.json.

import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

val MODEL = "model.pte"
val MAX_LENGTH = 128

class Tagger(folder: File) {
    private val module = Module.load(File(folder, MODEL).path)

    /** The number of each id's label, from input_ids, attention_mask and, where the student has them, token_type_ids. */
    fun labels(vararg inputs: LongArray): List<Int> {
        require(inputs[0].size in 2..MAX_LENGTH)
        val rows = inputs.map { EValue.from(Tensor.fromBlob(it, longArrayOf(1, it.size.toLong()))) }
        val logits = module.forward(*rows.toTypedArray())[0].toTensor().dataAsFloatArray.toList()
        return logits.chunked(logits.size / inputs[0].size) { row -> row.indices.maxByOrNull { row[it] }!! }
    }
}
