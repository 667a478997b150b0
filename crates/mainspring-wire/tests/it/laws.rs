//! What holds of every decoder on any bytes, for the fuzz test and for `make fuzz`.

use mainspring_session::{AgentSpec, Api, CallIndex, Failure, ModelSpec};
use mainspring_wire::{CallIds, Codec, Decoded, Delta, WireLimits};
use serde_json::json;

/// Bounds that small inputs reach.
pub const LIMITS: WireLimits =
    WireLimits { sse_event_bytes_max: 2_000, answer_bytes_max: 3_000, tool_calls_max: 8 };
const IDS: CallIds = CallIds { first: CallIndex(0) };

/// A codec of each API, and the one that reads constrained answers.
#[must_use]
pub fn codecs() -> Vec<Codec> {
    let make = |api: Api, tool_mode: &str| {
        let tool = json!({"name": "add", "parameters": {"type": "object"}, "effect": "read",
                          "timeout_ms": 1, "attempts_max": 1});
        let model = json!({"name": "m", "base_url": "http://h/v1", "tool_mode": tool_mode,
                           "output_mode": "native", "logprobs": true});
        let agent = json!({"name": "a", "tools": [tool], "models": [model]});
        let agent: AgentSpec = serde_json::from_value(agent).expect("the spec is valid");
        let model = ModelSpec { api, ..agent.models[0].clone() };
        Codec::new(&agent, &model, true).expect("the spec is valid").with_limits(LIMITS)
    };
    vec![
        make(Api::ChatCompletions, "native"),
        make(Api::ChatCompletions, "json_schema"),
        make(Api::Responses, "native"),
        make(Api::Messages, "native"),
    ]
}

/// What a stream in these pieces comes to, and the text it reported on the way.
pub fn run(codec: &Codec, pieces: &[&[u8]]) -> (Result<Decoded, Failure>, String) {
    let mut decoder = codec.stream(IDS);
    let mut text = String::new();
    for piece in pieces {
        let pushed = decoder.push(piece, &mut |delta| {
            if let Delta::Text(piece) | Delta::Constrained(piece) = delta {
                text.push_str(piece);
            }
        });
        if let Err(failure) = pushed {
            return (Err(failure), text);
        }
    }
    (decoder.finish(), text)
}

/// Checks one input: it is read whole, and as a stream in two ways of cutting it.
///
/// # Panics
/// If a law is broken.
pub fn check(codec: &Codec, bytes: &[u8], pieces: &[&[u8]]) {
    if let Ok(decoded) = codec.decode(bytes, IDS) {
        check_answer(&decoded);
    }
    let (streamed, text) = run(codec, pieces);
    let (again, same_text) = run(codec, &[bytes]);
    assert_eq!((&streamed, &text), (&again, &same_text), "a cut changed the answer");
    assert!(text.len() <= LIMITS.answer_bytes_max, "more was reported than an answer may have");
    if let Ok(decoded) = streamed {
        check_answer(&decoded);
    }
}

fn check_answer(decoded: &Decoded) {
    let answer = &decoded.answer;
    assert!(answer.tool_calls.len() <= LIMITS.tool_calls_max, "too many calls");
    let mut ids: Vec<&str> = answer.tool_calls.iter().map(|call| &*call.id).collect();
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "two calls have one id");
    assert!(ids.iter().all(|id| !id.is_empty()), "a call has no id");
    let said: usize = answer.text.len()
        + answer.tool_calls.iter().map(|call| call.arguments.len()).sum::<usize>();
    // Raw JSON may be shorter than what it stands for, but never by much.
    assert!(said <= 2 * LIMITS.answer_bytes_max, "an answer is longer than its limit");
    let mean = decoded.notes.logprob_mean;
    assert!(mean.is_none_or(|mean| (-100.0..=0.0).contains(&mean)), "no log-probability: {mean:?}");
}
