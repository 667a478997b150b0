//! Times of the hot paths of each codec, printed as JSON: `cargo run --release -p mainspring-models
//! --example codec_cost`. It stands here because the codecs' own crate reads no clock.
//!
//! Each number is the fastest of several series of runs: what a busy machine adds is no cost of the
//! codec. `turn_ns` is one model turn with three tool calls on a history of 100 rounds: decode the
//! answer, encode it and its results, make the next body.

use std::hint::black_box;
use std::time::Instant;

use mainspring_session::{AgentSpec, Api, CallIndex, Message, ToolCall};
use mainspring_wire::{CallIds, Codec};
use serde_json::{Value, json};

const IDS: CallIds = CallIds { first: CallIndex(0) };
const SERIES: usize = 9;
const ROUNDS: u32 = 2_000;

/// Nanoseconds of one run.
fn time_ns(mut work: impl FnMut()) -> u64 {
    let series = (0..SERIES).map(|_| {
        let started = Instant::now();
        for _ in 0..ROUNDS {
            work();
        }
        started.elapsed().as_nanos() / u128::from(ROUNDS)
    });
    u64::try_from(series.min().unwrap_or(0)).unwrap_or(u64::MAX)
}

fn codec(api: Api) -> Codec {
    let tool = json!({"name": "read", "description": "Reads a file.", "effect": "read",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
        "timeout_ms": 1000, "attempts_max": 1});
    let model = json!({"name": "m", "base_url": "http://127.0.0.1/v1", "tool_mode": "native",
                       "output_mode": "native", "api": api});
    let agent = json!({"name": "a", "instructions": "Be brief.", "tools": [tool],
                       "models": [model]});
    let agent: AgentSpec = serde_json::from_value(agent).expect("the spec is valid");
    Codec::new(&agent, &agent.models[0], true).expect("the spec is valid")
}

fn said(calls: Vec<ToolCall>) -> Message {
    Message::Assistant { text: String::new(), tool_calls: calls, reasoning: vec![] }
}

fn result(call_id: String, text: String) -> Message {
    Message::Tool { call_id, name: "read".to_owned(), text, is_error: false }
}

/// A history of 100 rounds, about 200 KB.
fn history(codec: &Codec) -> Vec<u8> {
    let mut history = Vec::new();
    codec.encode_message(&Message::user("go"), &mut history);
    for idx in 0..100 {
        let arguments = format!("{{\"path\":\"file{idx}\"}}");
        let call = ToolCall { id: format!("c{idx}"), name: "read".to_owned(), arguments };
        codec.encode_message(&said(vec![call]), &mut history);
        codec.encode_message(&result(format!("c{idx}"), "a line\n".repeat(280)), &mut history);
    }
    history
}

/// A piece of text of a stream.
fn token(api: Api) -> Value {
    match api {
        Api::Responses => json!({"type": "response.output_text.delta", "sequence_number": 7,
            "item_id": "msg_0123456789abcdef", "output_index": 0, "content_index": 0,
            "delta": " token", "logprobs": [], "obfuscation": "0123456789abcdef"}),
        Api::Messages => json!({"type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": " token"}}),
        _ => json!({"id": "chatcmpl-0123456789", "object": "chat.completion.chunk",
            "created": 1_700_000_000, "model": "gpt-x", "system_fingerprint": "fp_0123456789",
            "service_tier": "default", "choices": [{"index": 0, "logprobs": null,
            "delta": {"content": " token"}, "finish_reason": null}], "usage": null,
            "obfuscation": "0123456789abcdef0123456789abcdef"}),
    }
}

/// A whole answer with three tool calls.
fn answer(api: Api) -> String {
    let arguments = "{\"path\":\"0123456789abcdef\"}";
    let three = |call: &dyn Fn(usize) -> Value| (0..3).map(call).collect::<Vec<_>>();
    match api {
        Api::Responses => json!({"id": "resp_1", "object": "response", "status": "completed",
            "error": null, "model": "gpt-x", "output": three(&|idx| json!({
                "type": "function_call", "id": format!("fc_{idx}"), "status": "completed",
                "call_id": format!("call_{idx}"), "name": "read", "arguments": arguments})),
            "usage": {"input_tokens": 10, "output_tokens": 5}}),
        Api::Messages => json!({"id": "msg_1", "type": "message", "role": "assistant",
            "model": "claude-x", "stop_reason": "tool_use", "content": three(&|idx| json!({
                "type": "tool_use", "id": format!("toolu_{idx}"), "name": "read",
                "input": {"path": "0123456789abcdef"}})),
            "usage": {"input_tokens": 10, "output_tokens": 5}}),
        _ => json!({"id": "x", "object": "chat.completion", "model": "gpt-x", "choices": [{
            "index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant",
                "content": null, "tool_calls": three(&|idx| json!({
                    "id": format!("call_{idx}"), "type": "function",
                    "function": {"name": "read", "arguments": arguments}}))}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5}}),
    }
    .to_string()
}

fn measure(api: Api) -> Value {
    let codec = codec(api);
    let mut history = history(&codec);
    let whole = answer(api);
    let body_ns = time_ns(|| drop(black_box(codec.body(&history))));

    let message = result("c0".to_owned(), "a line\n".repeat(286));
    let mut out = Vec::with_capacity(4096);
    let encode_ns = time_ns(|| {
        out.clear();
        codec.encode_message(black_box(&message), &mut out);
    });
    let decode_ns = time_ns(|| {
        black_box(codec.decode(whole.as_bytes(), IDS).expect("the answer is valid"));
    });

    let event = format!("data: {}\n\n", token(api));
    let mut decoder = codec.stream(IDS);
    let token_ns = time_ns(|| {
        decoder.push(event.as_bytes(), &mut |_| {}).expect("the event is valid");
    });

    let text = "a line\n".repeat(30);
    let kept = history.len();
    let turn_ns = time_ns(|| {
        history.truncate(kept);
        let decoded = codec.decode(whole.as_bytes(), IDS).expect("the answer is valid");
        let ids: Vec<String> = decoded.answer.tool_calls.iter().map(|c| c.id.clone()).collect();
        codec.encode_message(&said(decoded.answer.tool_calls), &mut history);
        for id in ids {
            codec.encode_message(&result(id, text.clone()), &mut history);
        }
        drop(black_box(codec.body(&history)));
    });
    json!({"history_bytes": kept, "body_ns": body_ns, "encode_2kb_result_ns": encode_ns,
           "token_bytes": event.len(), "token_ns": token_ns, "decode_3_calls_ns": decode_ns,
           "turn_ns": turn_ns})
}

fn main() {
    let times = json!({
        "chat_completions": measure(Api::ChatCompletions),
        "responses": measure(Api::Responses),
        "messages": measure(Api::Messages),
    });
    println!("{}", serde_json::to_string_pretty(&times).unwrap_or_default());
}
