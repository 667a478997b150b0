//! Requests that begin as the one before did: whatever API and form, a conversation that grows at its
//! end changes no byte before its newest message, so that a provider's prompt cache hits.

use std::collections::BTreeMap;

use mainspring_session::{Api, Message, ToolCall};
use mainspring_wire::Codec;
use serde_json::json;
use serde_json::value::RawValue;

use crate::{agent, codec, tool};

const TURNS: usize = 50;
/// Bytes at the end of a message that the next one may move: the quotation mark and brackets behind
/// results that share one message.
const SEAM_BYTES: usize = 32;

/// One codec of each API, and the one that spells tool calls as text.
fn codecs() -> Vec<Codec> {
    let parameters = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
    let tools = json!({"tools": [tool("look", "Looks.", parameters)]});
    let forms = [
        (Api::ChatCompletions, "native"),
        (Api::ChatCompletions, "json_schema"),
        (Api::Responses, "native"),
        (Api::Messages, "native"),
    ];
    forms
        .iter()
        .map(|(api, mode)| {
            codec(&agent(json!({"api": api, "tool_mode": mode}), tools.clone()), false)
        })
        .collect()
}

/// What one turn adds: an input, an answer with two calls, their results, an answer.
fn turn(number: usize) -> Vec<Message> {
    let id = |at: usize| format!("c{}", number * 2 + at);
    let call = |at| ToolCall {
        id: id(at),
        name: "look".to_owned(),
        arguments: format!("{{\"n\":{number}}}"),
    };
    let result = |at| Message::Tool {
        call_id: id(at),
        name: "look".to_owned(),
        text: format!("result \"{number}\" ä"),
        is_error: at == 1 && number.is_multiple_of(3),
    };
    vec![
        Message::user(format!("turn {number}")),
        Message::Assistant {
            text: String::new(),
            tool_calls: vec![call(0), call(1)],
            reasoning: Vec::new(),
        },
        result(0),
        result(1),
        Message::Assistant {
            text: format!("answer {number}"),
            tool_calls: Vec::new(),
            reasoning: Vec::new(),
        },
    ]
}

/// The fields beside the messages, and the messages, each as its bytes.
fn parts(body: &[u8]) -> (Vec<(String, String)>, Vec<String>) {
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body).unwrap();
    let is_list = |name: &str| ["messages", "input"].contains(&name);
    let list = fields.iter().find(|(name, _)| is_list(name)).unwrap().1;
    let messages: Vec<Box<RawValue>> = serde_json::from_str(list.get()).unwrap();
    let rest = fields.iter().filter(|(name, _)| !is_list(name));
    (
        rest.map(|(name, value)| (name.clone(), value.get().to_owned())).collect(),
        messages.iter().map(|message| message.get().to_owned()).collect(),
    )
}

#[test]
fn fifty_turns_begin_with_the_same_bytes_in_every_api() {
    for codec in codecs() {
        let mut history = Vec::new();
        let mut before: Vec<u8> = Vec::new();
        for number in 0..TURNS {
            for message in turn(number) {
                codec.encode_message(&message, &mut history);
                let after = codec.body(&history);
                if !before.is_empty() {
                    assert_continues(&before, &after);
                }
                before = after;
            }
        }
    }
}

fn assert_continues(before: &[u8], after: &[u8]) {
    let ((rest, messages), (rest_after, messages_after)) = (parts(before), parts(after));
    assert_eq!(rest, rest_after, "what comes beside the messages");
    // The newest message may take in a result; all others are as they were.
    let (newest, old) = messages.split_last().unwrap();
    assert_eq!(old, &messages_after[..old.len()]);
    let text = std::str::from_utf8(before).unwrap();
    let end = text.rfind(newest.as_str()).unwrap() + newest.len();
    let common = before.iter().zip(after).take_while(|(one, two)| one == two).count();
    assert!(common + SEAM_BYTES >= end, "the bytes differ at {common}, {end} were sent before");
}
