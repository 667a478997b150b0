//! Times of the codec's hot paths, printed as JSON: `cargo run --release -p mainspring-models
//! --example codec_cost`. It stands here because the codec's own crate reads no clock.

use std::time::Instant;

use mainspring_session::{AgentSpec, CallIndex, Message, ToolCall};
use mainspring_wire::{CallIds, ChatCodec};
use serde_json::json;

const IDS: CallIds = CallIds { first: CallIndex(0) };
const ROUNDS: u32 = 5_000;

/// Nanoseconds of one run, the median of five series.
fn time_ns(mut work: impl FnMut()) -> u64 {
    let mut times: Vec<u128> = (0..5)
        .map(|_| {
            let started = Instant::now();
            for _ in 0..ROUNDS {
                work();
            }
            started.elapsed().as_nanos() / u128::from(ROUNDS)
        })
        .collect();
    times.sort_unstable();
    u64::try_from(times[2]).unwrap_or(u64::MAX)
}

fn main() {
    let model = json!({"name": "m", "base_url": "http://127.0.0.1/v1", "tool_mode": "native",
                       "output_mode": "native"});
    let agent = json!({"name": "a", "instructions": "Be brief.", "models": [model]});
    let agent: AgentSpec = serde_json::from_value(agent).expect("the spec is valid");
    let codec = ChatCodec::new(&agent, &agent.models[0], true).expect("the spec is valid");

    let mut history = Vec::new();
    for idx in 0..100 {
        let arguments = format!("{{\"path\":\"file{idx}\"}}");
        let call = ToolCall { id: format!("c{idx}"), name: "read".to_owned(), arguments };
        let said = Message::Assistant { text: String::new(), tool_calls: vec![call] };
        codec.encode_message(&said, &mut history);
        let (call_id, name) = (format!("c{idx}"), "read".to_owned());
        let text = "line of text\n".repeat(140);
        let result = Message::Tool { call_id, name, text, is_error: false };
        codec.encode_message(&result, &mut history);
    }
    let body_ns = time_ns(|| drop(std::hint::black_box(codec.body(&history))));

    let message = Message::Tool {
        call_id: "c0".to_owned(),
        name: "read".to_owned(),
        text: "line of text\n".repeat(154),
        is_error: false,
    };
    let mut out = Vec::with_capacity(4096);
    let message_ns = time_ns(|| {
        out.clear();
        codec.encode_message(std::hint::black_box(&message), &mut out);
    });

    let chunk = json!({"id": "chatcmpl-0123456789", "object": "chat.completion.chunk",
        "created": 1_700_000_000, "model": "gpt-x", "system_fingerprint": "fp_0123456789",
        "service_tier": "default", "choices": [{"index": 0, "logprobs": null,
        "delta": {"content": " token"}, "finish_reason": null}], "usage": null,
        "obfuscation": "0123456789abcdef0123456789abcdef"});
    let event = format!("data: {chunk}\n\n");
    let mut decoder = codec.stream(IDS);
    let chunk_ns = time_ns(|| {
        decoder.push(event.as_bytes(), &mut |_| {}).expect("the chunk is valid");
    });

    let calls: Vec<_> = (0..3)
        .map(|idx| {
            json!({"id": format!("call_{idx}"), "type": "function", "function":
            {"name": "echo", "arguments": "{\"text\":\"0123456789abcdef\"}"}})
        })
        .collect();
    let whole = json!({"id": "x", "object": "chat.completion", "model": "gpt-x", "choices":
        [{"index": 0, "message": {"role": "assistant", "content": null, "tool_calls": calls},
          "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})
    .to_string();
    let decode_ns = time_ns(|| {
        codec.decode(whole.as_bytes(), IDS).expect("the answer is valid");
    });
    println!(
        "{}",
        json!({"history_bytes": history.len(), "body_ns": body_ns, "encode_2kb_result_ns": message_ns,
               "chunk_bytes": event.len(), "chunk_ns": chunk_ns, "decode_3_calls_ns": decode_ns})
    );
}
