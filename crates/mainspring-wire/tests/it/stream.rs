//! Streamed answers: put together from pieces, cut anywhere.

use mainspring_session::{ErrorCode, Failure, FinishReason, Usage};
use mainspring_wire::{Codec, Decoded, Delta, WireLimits};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{IDS, call, constrained, native};

fn sse(chunks: &[Value]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect()
}

fn delta(delta: Value) -> Value {
    json!({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn piece(index: Value, id: Value, name: Value, arguments: Value) -> Value {
    delta(json!({"tool_calls": [
        {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}]}))
}

/// Decodes a stream in the given pieces; deltas are written one per line.
fn run(codec: &Codec, pieces: &[&[u8]]) -> (Result<Decoded, Failure>, Vec<String>) {
    let mut decoder = codec.stream(IDS);
    let mut deltas = Vec::new();
    for piece in pieces {
        let pushed = decoder.push(piece, &mut |delta| {
            deltas.push(match delta {
                Delta::Text(text) => format!("text {text}"),
                Delta::Constrained(text) => format!("constrained {text}"),
                Delta::Reasoning(text) => format!("reasoning {text}"),
                Delta::ToolCall { idx, name } => format!("call {idx} {name}"),
                Delta::ToolArguments { idx, fragment } => format!("arguments {idx} {fragment}"),
            })
        });
        if let Err(failure) = pushed {
            return (Err(failure), deltas);
        }
    }
    (decoder.finish(), deltas)
}

fn decode(stream: &str) -> Result<Decoded, Failure> {
    run(&native(), &[stream.as_bytes()]).0
}

/// A stream with everything in it.
fn full_stream() -> String {
    let chunks = [
        delta(json!({"role": "assistant", "content": ""})),
        delta(json!({"reasoning_content": "hmm"})),
        delta(json!({"content": "Grüße "})),
        delta(json!({"content": "🎉 \"quoted\"\n"})),
        piece(json!(0), json!("x1"), json!("add"), json!("")),
        piece(json!(0), json!(null), json!(null), json!("{\"a\"")),
        piece(json!(1), json!("x2"), json!("mul"), json!("{}")),
        piece(json!(0), json!(""), json!(""), json!(":1}")),
        json!({"choices": [{"index": 1, "delta": {"content": "another answer"}}]}),
        finish("tool_calls"),
        json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
    ];
    format!(": hello\n\n{}data: [DONE]\n\n", sse(&chunks))
}

#[test]
fn pieces_are_put_together_and_reported_as_they_come() {
    let stream = full_stream();
    let (decoded, deltas) = run(&native(), &[stream.as_bytes()]);
    let decoded = decoded.unwrap();
    assert_eq!(decoded.answer.text, "Grüße 🎉 \"quoted\"\n");
    let calls = vec![call("x1", "add", "{\"a\":1}"), call("x2", "mul", "{}")];
    assert_eq!(decoded.answer.tool_calls, calls);
    assert_eq!(decoded.finish_reason, FinishReason::ToolCalls);
    assert_eq!(decoded.usage, Usage { input_tokens: 3, output_tokens: 4, ..Usage::default() });
    assert_eq!(decoded.problems, []);
    assert_eq!(
        deltas,
        [
            "reasoning hmm",
            "text Grüße ",
            "text 🎉 \"quoted\"\n",
            "call 0 add",
            "arguments 0 {\"a\"",
            "call 1 mul",
            "arguments 1 {}",
            "arguments 0 :1}",
        ]
    );
}

#[test]
fn servers_that_number_calls_badly_are_understood() {
    // All under 0, none numbered, and whole calls in one piece.
    for index in [json!(0), json!(null)] {
        let stream = sse(&[
            piece(index.clone(), json!("x1"), json!("f"), json!({"a": 1})),
            piece(index.clone(), json!("x2"), json!("f"), json!("{}")),
            finish("stop"),
        ]);
        let calls = decode(&stream).unwrap().answer.tool_calls;
        assert_eq!(calls, [call("x1", "f", "{\"a\":1}"), call("x2", "f", "{}")]);
    }
    // Id and name repeated in every piece; a gap in the numbers.
    let stream = sse(&[
        piece(json!(5), json!("x1"), json!("f"), json!("{")),
        piece(json!(5), json!("x1"), json!("f"), json!("}")),
        piece(json!(4_000_000_000_u64), json!(null), json!("g"), json!(null)),
        finish("stop"),
    ]);
    let calls = decode(&stream).unwrap().answer.tool_calls;
    assert_eq!(calls, [call("x1", "f", "{}"), call("c8", "g", "{}")]);
}

#[test]
fn the_first_token_is_text_reasoning_or_a_call() {
    for (chunk, is_token) in [
        (delta(json!({"role": "assistant", "content": ""})), false),
        (delta(json!({"content": "x"})), true),
        (delta(json!({"reasoning_content": "x"})), true),
        (piece(json!(0), json!("x"), json!("f"), json!("")), true),
    ] {
        let mut decoder = native().stream(IDS);
        decoder.push(sse(&[chunk]).as_bytes(), &mut |_| {}).unwrap();
        assert_eq!(decoder.saw_token(), is_token);
    }
}

#[test]
fn constrained_text_is_marked_and_read_at_the_end() {
    let stream = sse(&[
        delta(json!({"content": "{\"tool_calls\":[{\"name\":\"add\","})),
        delta(json!({"content": "\"arguments\":{\"a\":1}}]}"})),
        finish("stop"),
    ]);
    let (decoded, deltas) = run(&constrained(), &[stream.as_bytes()]);
    let decoded = decoded.unwrap();
    assert_eq!(decoded.answer.tool_calls, [call("c7", "add", "{\"a\":1}")]);
    assert_eq!(decoded.answer.text, "");
    assert_eq!(decoded.finish_reason, FinishReason::ToolCalls);
    assert!(deltas.iter().all(|delta| delta.starts_with("constrained ")) && deltas.len() == 2);
}

#[test]
fn a_stream_is_complete_with_done_or_a_finish_reason() {
    let text = delta(json!({"content": "x"}));
    let refusal = delta(json!({"refusal": "no"}));
    for (stream, reason) in [
        (sse(&[text.clone(), finish("stop")]), FinishReason::Stop),
        (format!("{}data: [DONE]", sse(std::slice::from_ref(&text))), FinishReason::Other),
        (
            format!("{}data: [DONE]\n\ndata: garbage\n\n", sse(std::slice::from_ref(&text))),
            FinishReason::Other,
        ),
        (
            format!("{}data: {}", sse(std::slice::from_ref(&text)), finish("length")),
            FinishReason::Length,
        ),
        (sse(&[refusal, finish("stop")]), FinishReason::ContentFilter),
    ] {
        assert_eq!(decode(&stream).unwrap().finish_reason, reason, "{stream}");
    }
}

#[test]
fn a_stream_that_ends_early_was_interrupted() {
    let begun = sse(&[delta(json!({"content": "x"}))]);
    for stream in ["", &begun, &format!("{begun}data: {{\"choices\":[{{\"del")] {
        let failure = decode(stream).unwrap_err();
        assert_eq!(failure.code, ErrorCode::MODEL_INTERRUPTED);
        let message = "model \"m\" ended the stream before its answer was complete";
        assert_eq!((&*failure.message, failure.retryable), (message, true));
    }
}

#[test]
fn garbage_is_a_bad_response_and_an_error_is_that_error() {
    for stream in [
        "data: {oops\n\n",
        "<html>no</html>\n",
        "data: [DONE]\n\n",
        "data: []\n\n",
        "data: \u{1}\n\n",
    ] {
        assert_eq!(decode(stream).unwrap_err().code, ErrorCode::MODEL_BAD_RESPONSE, "{stream}");
    }
    let begun = sse(&[delta(json!({"content": "x"}))]);
    let error = json!({"error": {"message": "overloaded", "code": 503}});
    let failure = decode(&format!("{begun}event: error\ndata: {error}\n\n")).unwrap_err();
    assert_eq!(failure.code, ErrorCode::MODEL_SERVER_ERROR);
    assert_eq!(failure.message, "model \"m\" answered with an error: overloaded");
}

#[test]
fn streams_past_the_limits_are_refused() {
    let limits = WireLimits { sse_event_bytes_max: 300, answer_bytes_max: 10, tool_calls_max: 1 };
    let codec = native().with_limits(limits);
    let two_calls = [
        piece(json!(0), json!("a"), json!("f"), json!("")),
        piece(json!(1), json!("b"), json!("f"), json!("")),
    ];
    for (stream, message) in [
        (sse(&[delta(json!({"content": "0123456789x"}))]), "is longer than 10 bytes"),
        (sse(&two_calls), "has more than 1 tool calls"),
        (format!("data: {}", "x".repeat(400)), "is longer than 300 bytes"),
    ] {
        let failure = run(&codec, &[stream.as_bytes()]).0.unwrap_err();
        assert_eq!(failure.message, format!("answer of model \"m\" {message}"));
    }
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_answer(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let stream = full_stream();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.sort_unstable();
        cuts.push(stream.len());
        let mut from = 0;
        let pieces: Vec<&[u8]> = cuts.into_iter().map(|cut| {
            let piece = &stream.as_bytes()[from..cut];
            from = cut;
            piece
        }).collect();
        prop_assert_eq!(run(&native(), &pieces), run(&native(), &[stream.as_bytes()]));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = run(&native(), &[&bytes]);
        let _ = native().decode(&bytes, IDS);
        let _ = constrained().decode(&bytes, IDS);
    }

    #[test]
    fn no_chunk_panics(chunk in "[\\[\\]{}:,\"a-z0-9 ]{0,60}", field in "choices|delta|tool_calls|usage|error") {
        let _ = decode(&format!("data: {chunk}\n\ndata: {{\"{field}\":{chunk}}}\n\n"));
        let body = format!("{{\"choices\":[{{\"message\":{{\"content\":{chunk}}}}}]}}");
        let _ = constrained().decode(body.as_bytes(), IDS);
    }

    #[test]
    fn unknown_fields_change_nothing(key in "[a-z]{12}", value in "[1-9][0-9]{0,5}|\"[a-z]*\"|\\[\\]|\\{\"a\":1\\}") {
        let plain = sse(&[delta(json!({"content": "x"})), finish("stop")]);
        let extra = plain.replace("{\"", &format!("{{\"{key}\":{value},\""));
        prop_assert_eq!(decode(&extra), decode(&plain));
    }
}
