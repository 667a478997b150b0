//! Whole answers, decoded.

use mainspring_session::{Answer, CallNotes, ErrorCode, FinishReason, Usage};
use mainspring_wire::{Codec, Decoded, WireLimits};
use serde_json::{Value, json};

use crate::{IDS, agent, call, codec, constrained, native};

fn decode(codec: &Codec, message: Value, finish_reason: Value) -> Decoded {
    let body = json!({"id": "x", "choices": [
        {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": null}]});
    codec.decode(body.to_string().as_bytes(), IDS).unwrap()
}

fn function(id: Value, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn text_is_taken_from_a_string_null_or_parts() {
    for (content, text) in [
        (json!("Grüße 🎉"), "Grüße 🎉"),
        (json!(null), ""),
        (json!([{"type": "text", "text": "a"}, {"type": "other", "x": {"text": 1}}, "b"]), "ab"),
    ] {
        let decoded =
            decode(&native(), json!({"role": "assistant", "content": content}), json!("stop"));
        let answer = Answer { text: text.into(), tool_calls: vec![], reasoning: vec![] };
        let usage = Usage::default();
        let expected = Decoded {
            answer,
            finish_reason: FinishReason::Stop,
            usage,
            notes: CallNotes::default(),
            problems: vec![],
        };
        assert_eq!(decoded, expected);
    }
}

#[test]
fn finish_reasons_have_neutral_names() {
    for (reason, expected) in [
        (json!("stop"), FinishReason::Stop),
        (json!("STOP"), FinishReason::Stop),
        (json!("length"), FinishReason::Length),
        (json!("tool_calls"), FinishReason::ToolCalls),
        (json!("content_filter"), FinishReason::ContentFilter),
        (json!("surprise"), FinishReason::Other),
        (json!(null), FinishReason::Other),
    ] {
        assert_eq!(decode(&native(), json!({"content": "x"}), reason).finish_reason, expected);
    }
}

#[test]
fn call_ids_stay_when_they_are_usable_and_are_made_when_not() {
    let calls = json!([
        function(json!("a"), "f", json!("{\"x\":1}")),
        function(json!("a"), "f", json!("")),
        function(json!(null), "g", json!({"y": [1, 2]})),
        function(json!("c10"), "g", json!("not json")),
        {"function": {"name": "h"}},
    ]);
    let decoded = decode(&native(), json!({"content": null, "tool_calls": calls}), json!("stop"));
    let expected = vec![
        call("a", "f", "{\"x\":1}"),
        call("c8", "f", "{}"),
        call("c9", "g", "{\"y\":[1,2]}"),
        call("c10", "g", "not json"),
        call("c11", "h", "{}"),
    ];
    assert_eq!(decoded.answer.tool_calls, expected);
    assert_eq!(decoded.finish_reason, FinishReason::ToolCalls);

    let clash =
        json!([function(json!("c8"), "f", json!("{}")), function(json!(""), "f", json!("{}"))]);
    let decoded = decode(&native(), json!({"tool_calls": clash}), json!("tool_calls"));
    let ids: Vec<&str> = decoded.answer.tool_calls.iter().map(|call| &*call.id).collect();
    assert_eq!(ids, ["c8", "c8_"]);
}

#[test]
fn usage_is_read_with_its_details_and_without_them() {
    let usage = |usage: Value| {
        let body = json!({"choices": [{"message": {"content": "x"}}], "usage": usage}).to_string();
        native().decode(body.as_bytes(), IDS).unwrap().usage
    };
    let full = json!({"prompt_tokens": 10, "completion_tokens": 5.0, "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": null},
        "completion_tokens_details": {"reasoning_tokens": 2}});
    let expected = Usage {
        input_tokens: 10,
        output_tokens: 5,
        cached_tokens: 4,
        reasoning_tokens: 2,
        ..Usage::default()
    };
    assert_eq!(usage(full), expected);
    let odd =
        json!({"prompt_tokens": -1, "completion_tokens": null, "prompt_tokens_details": null});
    assert_eq!(usage(odd), Usage::default());
    assert_eq!(usage(json!(null)), Usage::default());
}

#[test]
fn a_refusal_is_a_content_filter_with_its_text() {
    let decoded =
        decode(&native(), json!({"content": null, "refusal": "I cannot."}), json!("stop"));
    assert_eq!(decoded.answer.text, "I cannot.");
    assert_eq!(decoded.finish_reason, FinishReason::ContentFilter);
}

#[test]
fn reasoning_is_no_part_of_the_answer() {
    let message = json!({"content": "x", "reasoning_content": "hmm", "reasoning": {"a": 1}});
    assert_eq!(decode(&native(), message, json!("stop")).answer.text, "x");
}

#[test]
fn constrained_answers_become_calls_or_text() {
    let calls = "{\"tool_calls\":[{\"name\":\"add\",\"arguments\":{\"a\": 1}},\
                 {\"name\":\"add\",\"arguments\":{}}]}";
    let two = vec![call("c7", "add", "{\"a\": 1}"), call("c8", "add", "{}")];
    let one = vec![call("c7", "add", "{\"a\":2}")];
    for (content, text, tool_calls) in [
        (calls.to_owned(), "", two.clone()),
        (format!("\n```json\n{calls}\n```\n"), "", two),
        ("{\"name\":\"add\",\"arguments\":{\"a\":2}}".to_owned(), "", one),
        ("{\"answer\":\"It is \\\"3\\\".\"}".to_owned(), "It is \"3\".", vec![]),
        ("{\"answer\":[1, 2],\"tool_calls\":[]}".to_owned(), "[1, 2]", vec![]),
    ] {
        let decoded = decode(&constrained(), json!({"content": content}), json!("stop"));
        let is_calls = !tool_calls.is_empty();
        assert_eq!(
            decoded.answer,
            Answer { text: text.into(), tool_calls, reasoning: vec![] },
            "{content}"
        );
        assert_eq!(decoded.problems, []);
        let reason = if is_calls { FinishReason::ToolCalls } else { FinishReason::Stop };
        assert_eq!(decoded.finish_reason, reason);
    }
}

#[test]
fn a_constrained_answer_that_cannot_be_read_keeps_its_text_beside_a_problem() {
    let form = "the answer is not JSON of the form {\"tool_calls\":[{\"name\":...,\
                \"arguments\":{...}}]} or {\"answer\":...}: ";
    for (content, why) in [
        ("The sum is 3.", "expected value at line 1 column 1"),
        ("{\"answer\":\"cut o", "EOF while parsing a string at line 1 column 16"),
        ("{\"sum\":3}", "it has neither \"tool_calls\" nor \"answer\""),
        ("{\"name\":\"rm\",\"arguments\":{}}", "it has neither \"tool_calls\" nor \"answer\""),
    ] {
        let decoded = decode(&constrained(), json!({"content": content}), json!("length"));
        assert_eq!(
            decoded.answer,
            Answer { text: content.into(), tool_calls: vec![], reasoning: vec![] }
        );
        assert_eq!(decoded.problems.len(), 1);
        assert_eq!(decoded.problems[0].check, "parse");
        assert_eq!(decoded.problems[0].message, format!("{form}{why}"));
    }
}

#[test]
fn a_typed_answer_is_freed_of_its_fence_and_checked_for_being_json() {
    let spec = agent(json!({}), json!({"output_schema": {"type": "object"}}));
    let typed = codec(&spec, false);
    let decoded = decode(&typed, json!({"content": "```json\n{\"n\":1}\n```"}), json!("stop"));
    assert_eq!((&*decoded.answer.text, decoded.problems.len()), ("{\"n\":1}", 0));
    let decoded = decode(&typed, json!({"content": "n is 1"}), json!("stop"));
    assert_eq!(decoded.answer.text, "n is 1");
    assert!(decoded.problems[0].message.starts_with("the answer is not a JSON value: "));
}

#[test]
fn what_is_no_chat_completion_is_a_bad_response() {
    for (body, message) in [
        (
            "<html>",
            "answer of model \"m\" is not a chat completion (expected value at line 1 column 1): \"<html>\"",
        ),
        (
            "",
            "answer of model \"m\" is not a chat completion (EOF while parsing a value at line 1 column 0): \"\"",
        ),
        ("{}", "answer of model \"m\" has no choices[0].message: \"{}\""),
        (
            "{\"choices\":[]}",
            "answer of model \"m\" has no choices[0].message: \"{\\\"choices\\\":[]}\"",
        ),
    ] {
        let failure = native().decode(body.as_bytes(), IDS).unwrap_err();
        assert_eq!((&failure.code, &*failure.message), (&ErrorCode::MODEL_BAD_RESPONSE, message));
        assert!(failure.retryable && failure.hint.is_some());
    }
}

#[test]
fn answers_past_the_limits_are_refused() {
    let limits = WireLimits { answer_bytes_max: 200, tool_calls_max: 1, ..WireLimits::default() };
    let codec = native().with_limits(limits);
    let calls = b"{\"choices\":[{\"message\":{\"tool_calls\":[{},{}]}}]}";
    let failure = codec.decode(calls, IDS).unwrap_err();
    assert_eq!(failure.message, "answer of model \"m\" has more than 1 tool calls");
    let failure = codec.decode(&[b' '; 201], IDS).unwrap_err();
    assert_eq!(failure.message, "answer of model \"m\" is longer than 200 bytes");
}

#[test]
fn an_error_in_a_body_of_status_200_is_that_error() {
    let body = br#"{"error":{"message":"slow down","code":429}}"#;
    let failure = native().decode(body, IDS).unwrap_err();
    assert_eq!(failure.code, ErrorCode::MODEL_RATE_LIMITED);
    assert_eq!(failure.message, "model \"m\" answered with an error: slow down");
    let body = br#"{"error":null,"choices":[{"message":{"content":"x"}}]}"#;
    assert_eq!(native().decode(body, IDS).unwrap().answer.text, "x");
}
