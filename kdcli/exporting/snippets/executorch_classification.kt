// Android: org.pytorch:executorch-android, of the version of executorch in export.json
// kdcli ran the model with ExecuTorch's Python build on a computer, and neither it nor this code on a phone.
// A text's ids are those of tokenizer.json, which ai.djl.android:tokenizer-native reads; from 2 to MAX_LENGTH of them count.
// The names of the labels are id2label in config.json.

import java.io.File
import kotlin.math.exp
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

val MODEL = "model.pte"
val MAX_LENGTH = 128

class Classifier(folder: File) {
    private val module = Module.load(File(folder, MODEL).path)

    /** The probability of each label, from input_ids, attention_mask and, where the student has them, token_type_ids. */
    fun probabilities(vararg inputs: LongArray): List<Float> {
        require(inputs[0].size in 2..MAX_LENGTH)
        val rows = inputs.map { EValue.from(Tensor.fromBlob(it, longArrayOf(1, it.size.toLong()))) }
        val logits = module.forward(*rows.toTypedArray())[0].toTensor().dataAsFloatArray
        val powers = logits.map { exp(it - logits.max()) }
        return powers.map { it / powers.sum() }
    }
}
