//! Every decoder on bytes that are almost right, from fixed seeds: the short form of `make fuzz`.

use crate::corpus::samples;
use crate::laws::{check, codecs};
use crate::mutate::{Rng, cut, mutate};

/// Inputs made of each sample, for each decoder.
const ROUNDS: u64 = 60;

#[test]
fn no_bytes_break_a_decoder() {
    let (samples, codecs) = (samples(), codecs());
    for (idx, sample) in samples.iter().enumerate() {
        for round in 0..ROUNDS {
            let mut rng = Rng(idx as u64 * ROUNDS + round);
            let mut bytes = sample.bytes.to_vec();
            let other = samples[rng.below(samples.len())].bytes;
            mutate(&mut rng, &mut bytes, other);
            let pieces = cut(&mut rng, &bytes);
            for codec in &codecs {
                check(codec, &bytes, &pieces);
            }
        }
    }
}

#[test]
fn ten_thousand_calls_are_read_and_one_more_is_refused() {
    use mainspring_session::ErrorCode;
    use mainspring_wire::WireLimits;

    let at_most = WireLimits::default().tool_calls_max;
    for codec in codecs() {
        let codec = codec.with_limits(WireLimits::default());
        for count in [at_most, at_most + 1] {
            let (whole, stream) = calls(&codec, count);
            let ids = mainspring_wire::CallIds { first: mainspring_session::CallIndex(0) };
            let results = [codec.decode(whole.as_bytes(), ids), {
                let mut decoder = codec.stream(ids);
                let pushed = decoder.push(stream.as_bytes(), &mut |_| {});
                pushed.and_then(|()| decoder.finish())
            }];
            for result in results {
                match result {
                    Ok(decoded) => assert_eq!(
                        (decoded.answer.tool_calls.len(), count),
                        (at_most, at_most),
                        "all with one id, each gets its own"
                    ),
                    Err(failure) => {
                        assert_eq!(
                            (failure.code, count),
                            (ErrorCode::MODEL_BAD_RESPONSE, at_most + 1)
                        );
                        assert!(failure.message.contains("more than 10000 tool calls"));
                    }
                }
            }
        }
    }
}

/// An answer with so many calls of one id, whole and as a stream.
fn calls(codec: &mainspring_wire::Codec, count: usize) -> (String, String) {
    use mainspring_session::Api;
    use serde_json::{Value, json};

    let many = |call: &dyn Fn(usize) -> Value| (0..count).map(call).collect::<Vec<_>>();
    let sse = |events: Vec<Value>| {
        events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>()
    };
    match codec.api() {
        Api::Responses => {
            let item = |_| {
                json!({"type": "function_call", "call_id": "x", "name": "add",
                                  "arguments": "{}"})
            };
            let whole = json!({"status": "completed", "output": many(&item)}).to_string();
            let mut events = many(
                &|idx| json!({"type": "response.output_item.done", "output_index": idx, "item": item(0)}),
            );
            events.push(json!({"type": "response.completed", "response": {"output": []}}));
            (whole, sse(events))
        }
        Api::Messages => {
            let block = |_| json!({"type": "tool_use", "id": "x", "name": "add", "input": {}});
            let whole = json!({"content": many(&block), "stop_reason": "tool_use"}).to_string();
            let mut events = vec![json!({"type": "message_start", "message": {}})];
            events.extend(many(&|idx| {
                json!({"type": "content_block_start", "index": idx, "content_block": block(0)})
            }));
            events.push(json!({"type": "message_stop"}));
            (whole, sse(events))
        }
        _ => {
            let call = |idx: usize| {
                json!({"index": idx, "id": "x", "function":
                                          {"name": "add", "arguments": "{}"}})
            };
            let message = json!({"tool_calls": many(&call)});
            let whole = json!({"choices": [{"message": message, "finish_reason": "stop"}]});
            let mut events =
                many(&|idx| json!({"choices": [{"delta": {"tool_calls": [call(idx)]}}]}));
            events.push(json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}));
            (whole.to_string(), sse(events))
        }
    }
}
