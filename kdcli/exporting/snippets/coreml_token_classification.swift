// iOS 16 or macOS 13, in Package.swift: https://github.com/huggingface/swift-transformers (its product Tokenizers reads tokenizer.json)
// kdcli made the model, and ran neither it nor this code: compare its predictions with predictions/ before you rely on it.
// The text is all words with a space between two. A word's label is that of its first token; the names of the labels are id2label in config.json.

import CoreML
import Foundation
import Tokenizers

let MODEL = "model.fp16.mlpackage"
let MAX_LENGTH = 128

final class Tagger {
    private let model: MLModel
    private let tokenizer: any Tokenizer

    init(folder: URL) async throws {
        model = try MLModel(contentsOf: await MLModel.compileModel(at: folder.appendingPathComponent(MODEL)))
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
    }

    /// Each token, and the number of its label.
    func labels(_ text: String) throws -> [(token: String, label: Int)] {
        var ids = tokenizer.encode(text: text)
        if ids.count > MAX_LENGTH { ids = Array(ids.prefix(MAX_LENGTH - 1) + ids.suffix(1)) } // the last token ends the text
        let values = ["input_ids": ids, "attention_mask": ids.map { _ in 1 }, "token_type_ids": ids.map { _ in 0 }]
        var inputs: [String: MLMultiArray] = [:]
        for name in model.modelDescription.inputDescriptionsByName.keys {
            inputs[name] = MLMultiArray(MLShapedArray(scalars: values[name]!.map { Int32($0) }, shape: [1, ids.count]))
        }
        let output = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
        let array = output.featureValue(for: "logits")!.multiArrayValue!
        let logits = (0..<array.count).map { array[$0].doubleValue }
        let classes = logits.count / ids.count
        return ids.indices.map { place in
            let scores = Array(logits[place * classes..<(place + 1) * classes])
            return (tokenizer.convertIdToToken(ids[place]) ?? "", scores.firstIndex(of: scores.max()!)!)
        }
    }
}
