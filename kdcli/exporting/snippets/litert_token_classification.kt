// Android, in build.gradle.kts: implementation("com.google.ai.edge.litert:litert:1.4.2")
// kdcli ran the model with LiteRT's Python build on a computer, and neither it nor this code on a phone.
// The ids are those of tokenizer.json of all words in one text, a space between two, which ai.djl.android:tokenizer-native reads; at most MAX_LENGTH of them count.
// A word's label is that of its first id, by the positions of the ids in that text; the names of the labels are id2label in config.json.

import java.io.File
import org.tensorflow.lite.Interpreter

val MODEL = "model.int8.tflite"
val MAX_LENGTH = 128

class Tagger(folder: File) : AutoCloseable {
    private val interpreter = Interpreter(File(folder, MODEL), Interpreter.Options().setNumThreads(1))
    private val sizes = interpreter.signatureKeys.map { it.removePrefix("tokens_").toInt() }.sorted()

    /** The number of each id's label. */
    fun labels(ids: IntArray): List<Int> {
        require(ids.size <= MAX_LENGTH)
        val size = sizes.first { it >= ids.size } // the shortest signature that fits; the rest of the row is padded with 0
        val values = mapOf("input_ids" to ids, "attention_mask" to IntArray(ids.size) { 1 }, "token_type_ids" to IntArray(size))
        val name = "tokens_$size"
        val inputs = interpreter.getSignatureInputs(name).associateWith { arrayOf(values.getValue(it).copyOf(size)) }
        val labels = interpreter.getOutputTensorFromSignature("logits", name).shape().last()
        val logits = arrayOf(Array(size) { FloatArray(labels) })
        interpreter.runSignature(inputs, mapOf("logits" to logits), name)
        return logits[0].take(ids.size).map { row -> row.indices.maxByOrNull { row[it] }!! }
    }

    override fun close() = interpreter.close()
}
