//! Answers to clients: what is written here reads back through our own decoders.

use mainspring_session::{Answer, FinishReason, ToolCall, Usage};
use mainspring_wire::{ChatHead, DONE_CHUNK, Delta, error_body};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{IDS, call, native};

fn head() -> ChatHead {
    ChatHead { id: "chatcmpl-1".into(), created_s: 7, model: "m \"x\"".into() }
}

fn usage() -> Usage {
    Usage {
        input_tokens: 10,
        output_tokens: 5,
        cached_tokens: 4,
        reasoning_tokens: 2,
        ..Usage::default()
    }
}

fn answer(text: &str, tool_calls: Vec<ToolCall>) -> Answer {
    Answer { text: text.into(), tool_calls, ..Answer::default() }
}

fn whole(answer: &Answer, finish_reason: FinishReason) -> Vec<u8> {
    let mut out = Vec::new();
    head().completion(answer, finish_reason, usage(), &mut out);
    out
}

fn streamed(answer: &Answer, finish_reason: FinishReason) -> Vec<u8> {
    let mut out = Vec::new();
    let head = head();
    head.first_chunk(&mut out);
    for letter in answer.text.chars() {
        head.text_chunk(&letter.to_string(), &mut out);
    }
    if !answer.tool_calls.is_empty() {
        head.tools_chunk(&answer.tool_calls, &mut out);
    }
    head.finish_chunk(finish_reason, &mut out);
    head.usage_chunk(usage(), "\"extra\":1", &mut out);
    out.extend_from_slice(DONE_CHUNK);
    out
}

#[test]
fn a_whole_answer_has_every_field_of_a_chat_completion() {
    let body: Value = serde_json::from_slice(&whole(
        &answer("", vec![call("c1", "add", "{\"a\":1}")]),
        FinishReason::ToolCalls,
    ))
    .unwrap();
    let function = json!({"name": "add", "arguments": "{\"a\":1}"});
    let message = json!({
        "role": "assistant", "content": null, "refusal": null,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    });
    assert_eq!(
        body,
        json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m \"x\"",
            "choices": [{"index": 0, "message": message, "logprobs": null,
                         "finish_reason": "tool_calls"}],
            "usage": {
                "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        })
    );
}

#[test]
fn a_refusal_is_a_refusal() {
    let body = whole(&answer("I will not.", vec![]), FinishReason::ContentFilter);
    let body: Value = serde_json::from_slice(&body).unwrap();
    let message = &body["choices"][0]["message"];
    assert_eq!((&message["content"], &message["refusal"]), (&json!(null), &json!("I will not.")));
    assert_eq!(body["choices"][0]["finish_reason"], "content_filter");
}

#[test]
fn an_error_has_the_four_fields() {
    let mut out = Vec::new();
    error_body("invalid_request_error", "code", "a \"b\"", Some("p"), &mut out);
    let body: Value = serde_json::from_slice(&out).unwrap();
    let error = json!({"message": "a \"b\"", "type": "invalid_request_error", "param": "p",
                       "code": "code"});
    assert_eq!(body, json!({"error": error}));
}

proptest! {
    #[test]
    fn what_is_written_reads_back(text in "\\PC{0,40}", arguments in "\\PC{1,20}", with_call: bool) {
        let calls = if with_call { vec![call("c1", "add", &arguments)] } else { vec![] };
        prop_assume!(!arguments.trim().is_empty());
        let said = answer(&text, calls);
        let reason = if with_call { FinishReason::ToolCalls } else { FinishReason::Stop };
        let decoded = native().decode(&whole(&said, reason), IDS).unwrap();
        prop_assert_eq!(&decoded.answer, &said);
        prop_assert_eq!(decoded.finish_reason, reason);
        prop_assert_eq!(decoded.usage, usage());
        let mut decoder = native().stream(IDS);
        let mut told = String::new();
        decoder
            .push(&streamed(&said, reason), &mut |delta| {
                if let Delta::Text(text) = delta {
                    told.push_str(text);
                }
            })
            .unwrap();
        let decoded = decoder.finish().unwrap();
        prop_assert_eq!(&decoded.answer, &said);
        prop_assert_eq!(told, text);
        prop_assert_eq!(decoded.usage, usage());
    }
}
