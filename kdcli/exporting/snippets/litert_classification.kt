// Android, in build.gradle.kts: implementation("com.google.ai.edge.litert:litert:1.4.2")
// kdcli ran the model with LiteRT's Python build on a computer, and neither it nor this code on a phone.
// A text's ids are those of tokenizer.json, which ai.djl.android:tokenizer-native reads; at most MAX_LENGTH of them count.
// The names of the labels are id2label in config.json.

import java.io.File
import kotlin.math.exp
import org.tensorflow.lite.Interpreter

val MODEL = "model.int8.tflite"
val MAX_LENGTH = 128

class Classifier(folder: File) : AutoCloseable {
    private val interpreter = Interpreter(File(folder, MODEL), Interpreter.Options().setNumThreads(1))
    private val sizes = interpreter.signatureKeys.map { it.removePrefix("tokens_").toInt() }.sorted()

    /** The probability of each label. */
    fun probabilities(ids: IntArray, types: IntArray = IntArray(ids.size)): List<Float> {
        require(ids.size <= MAX_LENGTH)
        val size = sizes.first { it >= ids.size } // the shortest signature that fits; the rest of the row is padded with 0
        val name = "tokens_$size"
        val values = mapOf("input_ids" to ids, "attention_mask" to IntArray(ids.size) { 1 }, "token_type_ids" to types)
        val inputs = interpreter.getSignatureInputs(name).associateWith { arrayOf(values.getValue(it).copyOf(size)) }
        val logits = arrayOf(FloatArray(interpreter.getOutputTensorFromSignature("logits", name).shape().last()))
        interpreter.runSignature(inputs, mapOf("logits" to logits), name)
        val powers = logits[0].map { exp(it - logits[0].max()) }
        return powers.map { it / powers.sum() }
    }

    override fun close() = interpreter.close()
}
